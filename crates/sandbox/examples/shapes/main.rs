//! Looks for modules that are admitted and dear to compile.
//!
//! Each family of shapes has sizes. From random sizes the search doubles, halves and mixes them as long as that makes a
//! dearer module that admission lets through, and reports the dearest of each family: its peak memory and processor
//! time in the child that compiled it. The bounds of admission are set by what this finds.
//!
//! ```text
//! cargo run --release -p evidenceos-sandbox --example shapes -- [SECONDS A FAMILY, default 10] [FAMILY…]
//! cargo run --release -p evidenceos-sandbox --example shapes -- FAMILY:SIZE,SIZE,SIZE,SIZE…
//! ```
//!
//! The second form measures the shapes that it names, admitted or not. With `SHAPES_DIR=DIR` it also writes each to
//! `DIR/FAMILY-SIZES.wasm`.
//!
//! Exit status 1: something admitted needs more than 256 MiB or 2 s.

mod families;

use std::time::{Duration, Instant};

use self::families::{Build, FAMILIES};
use evidenceos_sandbox::{AdmitError, Config, Cost, Sandbox, check};
use wasm_encoder::{
    CodeSection, ConstExpr, DataCountSection, DataSection, ElementSection, Elements, ExportKind,
    ExportSection, Function, FunctionSection, GlobalSection, ImportSection, Instruction as I,
    MemorySection, MemoryType, Module, RefType, TableSection, TableType, TypeSection, ValType,
};

const MOST: Cost = Cost {
    peak_bytes: 256 << 20,
    cpu: Duration::from_secs(2),
    code_bytes: 8 << 20,
};

/// Sizes of a shape; what each is for is the family's.
type Sizes = [u32; 4];

fn main() -> std::process::ExitCode {
    if let Some(status) = evidenceos_sandbox::serve_if_child() {
        return status;
    }
    let mut arguments = std::env::args().skip(1).peekable();
    let seconds = arguments
        .peek()
        .and_then(|word| word.parse::<f64>().ok())
        .inspect(|_| {
            arguments.next();
        });
    let time = Duration::from_secs_f64(seconds.unwrap_or(10.0));
    let wanted: Vec<String> = arguments.collect();
    let sandbox = Sandbox::new(Config::default()).expect("children can be started here");
    println!(
        "{:26} {:>9} {:>8} {:>9} {:>9}  sizes",
        "family", "peak MiB", "CPU ms", "code KiB", "bytes"
    );
    let mut too_dear = false;
    for (name, build) in FAMILIES {
        let mut named = wanted.iter().filter_map(|word| word.split_once(':'));
        if let Some((_, sizes)) = named.find(|(family, _)| family == name) {
            measure(&sandbox, name, *build, sizes);
            continue;
        }
        if !wanted.is_empty() && !wanted.iter().any(|word| word == name) {
            continue;
        }
        let Some(worst) = search(&sandbox, *build, time) else {
            println!("{name:26} nothing of it is admitted");
            continue;
        };
        println!(
            "{name:26} {:9.1} {:8.0} {:9} {:9}  {:?}, {} tried, {} admitted{}",
            worst.cost.peak_bytes as f64 / f64::from(1 << 20),
            worst.cost.cpu.as_secs_f64() * 1e3,
            worst.cost.code_bytes >> 10,
            worst.bytes,
            worst.sizes,
            worst.tried,
            worst.admitted,
            if worst.failed { ": NOT COMPILED" } else { "" },
        );
        too_dear |= dearness(worst.cost) > 1.0 || worst.failed;
    }
    u8::from(too_dear).into()
}

/// Measures shapes of sizes that are separated by commas, four for each shape.
fn measure(sandbox: &Sandbox, name: &str, build: Build, sizes: &str) {
    let sizes: Vec<u32> = sizes
        .split(',')
        .map(|size| size.parse().expect("sizes are numbers"))
        .collect();
    let (shapes, rest) = sizes.as_chunks::<4>();
    assert!(rest.is_empty(), "a shape has four sizes");
    for sizes in shapes {
        let wasm = build(*sizes);
        let admitted = match check(&wasm) {
            Ok(_) => "admitted".to_owned(),
            Err(rules) => rules[0].to_string(),
        };
        let bytes = wasm.len();
        if let Some(to) = std::env::var_os("SHAPES_DIR") {
            let sizes = sizes.map(|size| size.to_string()).join("-");
            let file = std::path::Path::new(&to).join(format!("{name}-{sizes}.wasm"));
            std::fs::write(&file, &wasm).expect("the directory can be written to");
        }
        match sandbox.cost_of(&wasm) {
            Ok(cost) => println!(
                "{name:26} {:9.1} {:8.0} {:9} {bytes:9}  {sizes:?}, {admitted}",
                cost.peak_bytes as f64 / f64::from(1 << 20),
                cost.cpu.as_secs_f64() * 1e3,
                cost.code_bytes >> 10,
            ),
            Err(error) => println!("{name:26} {bytes:38}  {sizes:?}, {admitted}: {error}"),
        }
    }
}

struct Worst {
    cost: Cost,
    sizes: Sizes,
    bytes: usize,
    tried: u32,
    admitted: u32,
    failed: bool,
}

/// 1 for what may just be.
fn dearness(cost: Cost) -> f64 {
    let memory = cost.peak_bytes as f64 / MOST.peak_bytes as f64;
    let time = cost.cpu.as_secs_f64() / MOST.cpu.as_secs_f64();
    let code = cost.code_bytes as f64 / MOST.code_bytes as f64;
    memory.max(time).max(code)
}

fn search(sandbox: &Sandbox, build: Build, time: Duration) -> Option<Worst> {
    let until = Instant::now() + time;
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let (mut tried, mut admitted) = (0, 0);
    let mut best: Option<(f64, Cost, Sizes, usize, bool)> = None;
    let mut here: Option<(f64, Sizes)> = None;
    let mut stuck = 0;
    while Instant::now() < until {
        let sizes = match here {
            Some((_, sizes)) if stuck < 24 => random.beside(sizes),
            _ => {
                (here, stuck) = (None, 0);
                random.sizes()
            }
        };
        if sizes.iter().map(|size| u64::from(*size)).product::<u64>() > 1 << 34 {
            continue;
        }
        let wasm = build(sizes);
        tried += 1;
        if check(&wasm).is_err() {
            stuck += 1;
            continue;
        }
        let (cost, failed) = match sandbox.cost_of(&wasm) {
            Ok(cost) => (cost, false),
            // As a bound that only the compiler can see refuses it: too much machine code.
            Err(AdmitError::Engine(_)) => {
                stuck += 1;
                continue;
            }
            Err(error) => {
                eprintln!("{sizes:?}: {error}");
                (
                    Cost {
                        peak_bytes: 1 << 40,
                        ..MOST
                    },
                    true,
                )
            }
        };
        admitted += 1;
        let dear = dearness(cost);
        if here.is_none_or(|(before, _)| dear > before * 1.02) {
            (here, stuck) = (Some((dear, sizes)), 0);
        } else {
            stuck += 1;
        }
        if best.as_ref().is_none_or(|(most, ..)| dear > *most) {
            best = Some((dear, cost, sizes, wasm.len(), failed));
        }
    }
    best.map(|(_, cost, sizes, bytes, failed)| Worst {
        cost,
        sizes,
        bytes,
        tried,
        admitted,
        failed,
    })
}

/// xorshift64*: the search is the same each time, up to what the clock allows.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) as u32
    }

    fn sizes(&mut self) -> Sizes {
        std::array::from_fn(|_| 1 << (self.next() % 6))
    }

    fn beside(&mut self, mut sizes: Sizes) -> Sizes {
        for _ in 0..=self.next() % 2 {
            let at = (self.next() % 4) as usize;
            let size = sizes[at];
            sizes[at] = match self.next() % 5 {
                0 => size.saturating_mul(2),
                1 => size + size / 8 + 1,
                2 => size - size / 8,
                3 => size / 2,
                _ => size.saturating_mul(4),
            }
            .clamp(1, 1 << 18);
        }
        sizes
    }
}

/// A module under construction, with a memory, a table of functions and `run`.
struct Shape {
    types: TypeSection,
    functions: FunctionSection,
    code: CodeSection,
    globals: GlobalSection,
    extra_exports: u32,
    imports: ImportSection,
    imported: u32,
    elements: u32,
    /// Entries of each element segment.
    entries: u32,
    /// They are expressions, and not functions.
    are_expressions: bool,
    /// Length of the names of exports beyond those that are required.
    name_bytes: usize,
    /// Length of the data, which code may name.
    data_bytes: usize,
    /// Segments of a byte, and the bytes from each to the next.
    bytes: u32,
    apart: u32,
    run: Option<u32>,
    defined: u32,
}

impl Shape {
    fn new() -> Self {
        Self {
            types: TypeSection::new(),
            functions: FunctionSection::new(),
            code: CodeSection::new(),
            globals: GlobalSection::new(),
            extra_exports: 0,
            imports: ImportSection::new(),
            imported: 0,
            elements: 1,
            entries: 1,
            are_expressions: false,
            name_bytes: 1,
            data_bytes: 4,
            bytes: 0,
            apart: 0,
            run: None,
            defined: 0,
        }
    }

    fn kind(&mut self, parameters: u32, results: u32) -> u32 {
        self.types.ty().function(
            vec![ValType::I64; parameters as usize],
            vec![ValType::I64; results as usize],
        );
        self.types.len() - 1
    }

    /// A function of this kind; the first without parameters and results is `run`.
    fn function(
        &mut self,
        kind: u32,
        locals: u32,
        body: impl IntoIterator<Item = I<'static>>,
    ) -> u32 {
        self.functions.function(kind);
        let mut function = Function::new([(locals, ValType::I64)]);
        for instruction in body {
            function.instruction(&instruction);
        }
        function.instruction(&I::End);
        self.code.function(&function);
        self.defined += 1;
        self.imported + self.defined - 1
    }

    fn run(mut self, locals: u32, body: impl IntoIterator<Item = I<'static>>) -> Vec<u8> {
        let kind = self.kind(0, 0);
        self.run = Some(self.function(kind, locals, body));
        self.finish()
    }

    /// The same body so many times, the last of which is `run`.
    fn runs(mut self, times: u32, locals: u32, body: impl Fn() -> Vec<I<'static>>) -> Vec<u8> {
        let kind = self.kind(0, 0);
        for _ in 0..times {
            self.run = Some(self.function(kind, locals, body()));
        }
        self.finish()
    }

    fn finish(self) -> Vec<u8> {
        let run = self.run.expect("a shape has `run`");
        let mut module = Module::new();
        module.section(&self.types);
        if self.imported > 0 {
            module.section(&self.imports);
        }
        module.section(&self.functions);
        let mut tables = TableSection::new();
        tables.table(TableType {
            element_type: RefType::FUNCREF,
            table64: false,
            minimum: 16,
            maximum: Some(16),
            shared: false,
        });
        module.section(&tables);
        let mut memories = MemorySection::new();
        memories.memory(MemoryType {
            minimum: 1 + u64::from(self.bytes) * u64::from(self.apart) / (64 << 10),
            maximum: None,
            memory64: false,
            shared: false,
            page_size_log2: None,
        });
        module.section(&memories);
        if !self.globals.is_empty() {
            module.section(&self.globals);
        }
        let mut exports = ExportSection::new();
        exports.export("run", ExportKind::Func, run);
        exports.export("memory", ExportKind::Memory, 0);
        for number in 0..self.extra_exports {
            let name = format!("{number:e>0$}", self.name_bytes);
            exports.export(&name, ExportKind::Func, run);
        }
        module.section(&exports);
        let mut elements = ElementSection::new();
        let functions = vec![run; self.entries as usize];
        let expressions = vec![ConstExpr::ref_func(run); self.entries as usize];
        for _ in 0..self.elements {
            let entries = if self.are_expressions {
                Elements::Expressions(RefType::FUNCREF, expressions.as_slice().into())
            } else {
                Elements::Functions(functions.as_slice().into())
            };
            elements.active(None, &ConstExpr::i32_const(0), entries);
        }
        module.section(&elements);
        module.section(&DataCountSection {
            count: 1 + self.bytes,
        });
        module.section(&self.code);
        let mut data = DataSection::new();
        data.passive(vec![1; self.data_bytes]);
        for number in 0..self.bytes {
            let at = ConstExpr::i32_const((number * self.apart).cast_signed());
            data.active(0, &at, [1]);
        }
        module.section(&data);
        module.finish()
    }
}
