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

use std::time::{Duration, Instant};

use evidenceos_sandbox::{AdmitError, Config, Cost, Sandbox, check};
use wasm_encoder::{
    BlockType, CodeSection, ConstExpr, DataCountSection, DataSection, ElementSection, Elements,
    EntityType, ExportKind, ExportSection, Function, FunctionSection, GlobalSection, GlobalType,
    Ieee64, ImportSection, Instruction as I, MemArg, MemArgTarget, MemorySection, MemoryType,
    Module, RefType, TableSection, TableType, TypeSection, ValType,
};

const MOST: Cost = Cost {
    peak_bytes: 256 << 20,
    cpu: Duration::from_secs(2),
    code_bytes: 8 << 20,
};

/// Sizes of a shape; what each is for is the family's.
type Sizes = [u32; 4];

type Build = fn(Sizes) -> Vec<u8>;

const FAMILIES: &[(&str, Build)] = &[
    ("nested-blocks", |s| nested(s, I::Block)),
    ("nested-loops", |s| nested(s, I::Loop)),
    ("nested-ifs", nested_ifs),
    ("blocks-in-a-row", blocks_in_a_row),
    ("locals", locals),
    ("locals-in-loops", locals_in_loops),
    ("locals-in-ifs", locals_in_ifs),
    ("locals-and-branches", locals_and_branches),
    ("branch-tables", branch_tables),
    ("branch-tables-with-values", branch_tables_with_values),
    ("back-edges", back_edges),
    ("branches-out", branches_out),
    ("blocks-in-loops", blocks_in_loops),
    ("values-through-loops", values_through_loops),
    ("loops-among-blocks", loops_among_blocks),
    ("fresh-values-in-loops", fresh_values_in_loops),
    ("calls", calls),
    ("indirect-calls", indirect_calls),
    ("constants", constants),
    ("deep-stack", deep_stack),
    ("stack-across-blocks", stack_across_blocks),
    ("selects", selects),
    ("floats", floats),
    ("conversions", conversions),
    ("divisions", divisions),
    ("memory", memory),
    ("bulk-memory", bulk_memory),
    ("globals", globals),
    ("tables", tables),
    ("many-functions", many_functions),
    ("many-types", many_types),
    ("many-elements", many_elements),
    ("sparse-data", sparse_data),
    ("many-exports", many_exports),
    ("many-imports", many_imports),
    ("returns", returns),
    ("dead-code", dead_code),
];

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

fn times(n: u32, one: impl Fn(u32) -> Vec<I<'static>>) -> Vec<I<'static>> {
    (0..n).flat_map(one).collect()
}

fn pushes(n: u32) -> Vec<I<'static>> {
    times(n, |at| vec![I::I64Const(i64::from(at) << 33)])
}

fn drops(n: u32) -> Vec<I<'static>> {
    times(n, |_| vec![I::Drop])
}

/// Depth, parameters, results beyond them, functions.
fn nested([depth, arity, more, functions]: Sizes, open: fn(BlockType) -> I<'static>) -> Vec<u8> {
    let mut shape = Shape::new();
    let (arity, more) = (arity - 1, more - 1);
    let kind = shape.kind(arity, arity);
    let inner = shape.kind(arity, arity + more);
    shape.runs(functions, 0, || {
        let mut body = pushes(arity);
        body.extend(times(depth, |_| vec![open(BlockType::FunctionType(kind))]));
        body.push(open(BlockType::FunctionType(inner)));
        body.extend(pushes(more));
        body.push(I::End);
        body.extend(drops(more));
        body.extend(times(depth, |_| vec![I::End]));
        body.extend(drops(arity));
        body
    })
}

/// Depth, parameters, else-arms (odd: with), functions.
fn nested_ifs([depth, arity, arms, functions]: Sizes) -> Vec<u8> {
    let mut shape = Shape::new();
    let arity = arity - 1;
    let kind = shape.kind(arity, arity);
    shape.runs(functions, 0, || {
        let mut body = pushes(arity);
        body.extend(times(depth, |_| {
            vec![I::I32Const(1), I::If(BlockType::FunctionType(kind))]
        }));
        body.extend(times(depth, |_| {
            if arms % 2 == 1 {
                vec![I::Else, I::End]
            } else {
                vec![I::End]
            }
        }));
        body.extend(drops(arity));
        body
    })
}

/// Blocks, parameters, functions, branches to their ends.
fn blocks_in_a_row([blocks, arity, functions, branches]: Sizes) -> Vec<u8> {
    let mut shape = Shape::new();
    let arity = arity - 1;
    let kind = shape.kind(arity, arity);
    shape.runs(functions, 0, || {
        let mut body = pushes(arity);
        body.extend(times(blocks, |_| {
            let mut block = vec![I::Loop(BlockType::FunctionType(kind))];
            block.extend(times(branches - 1, |_| vec![I::I32Const(0), I::BrIf(0)]));
            block.push(I::End);
            block
        }));
        body.extend(drops(arity));
        body
    })
}

/// Locals, functions, instructions.
fn locals([locals, functions, uses, _]: Sizes) -> Vec<u8> {
    Shape::new().runs(functions, locals, || {
        times(uses, |at| {
            vec![I::LocalGet(at % locals), I::LocalSet((at + 1) % locals)]
        })
    })
}

/// Locals, loops, uses in each, functions.
fn locals_in_loops([locals, loops, uses, functions]: Sizes) -> Vec<u8> {
    Shape::new().runs(functions, locals, || {
        let mut body = times(loops, |_| vec![I::Loop(BlockType::Empty)]);
        body.extend(times(uses, |at| {
            vec![I::LocalGet(at % locals), I::LocalSet((at * 7 + 1) % locals)]
        }));
        body.extend(times(loops, |_| vec![I::I32Const(0), I::BrIf(0), I::End]));
        body
    })
}

/// Locals, ifs, uses in each, functions.
fn locals_in_ifs([locals, ifs, uses, functions]: Sizes) -> Vec<u8> {
    Shape::new().runs(functions, locals, || {
        times(ifs, |number| {
            let mut one = vec![I::I32Const(1), I::If(BlockType::Empty)];
            one.extend(times(uses, |at| {
                vec![I::I64Const(7), I::LocalSet((number + at * 31) % locals)]
            }));
            one.push(I::End);
            one
        })
    })
}

/// Locals, blocks, branches out of them, functions: every local is set before and read after.
fn locals_and_branches([locals, blocks, branches, functions]: Sizes) -> Vec<u8> {
    Shape::new().runs(functions, locals, || {
        let mut body = times(blocks, |_| vec![I::Block(BlockType::Empty)]);
        body.extend(times(branches, |at| {
            vec![
                I::I64Const(3),
                I::LocalSet(at % locals),
                I::I32Const(0),
                I::BrIf(at % blocks),
            ]
        }));
        body.extend(times(blocks, |at| {
            vec![I::End, I::LocalGet(at % locals), I::Drop]
        }));
        body.extend(times(locals.min(4_000), |at| {
            vec![I::LocalGet(at), I::Drop]
        }));
        body
    })
}

/// Depth, targets, tables, functions.
fn branch_tables([depth, targets, tables, functions]: Sizes) -> Vec<u8> {
    Shape::new().runs(functions, 0, || {
        let mut body = times(depth, |_| vec![I::Block(BlockType::Empty)]);
        body.extend(times(tables, |_| {
            let list: Vec<u32> = (0..targets).map(|at| at % depth).collect();
            vec![
                I::Block(BlockType::Empty),
                I::I32Const(2),
                I::BrTable(list.into(), 0),
                I::End,
            ]
        }));
        body.extend(times(depth, |_| vec![I::End]));
        body
    })
}

/// Depth, targets, values that each branch carries, tables.
fn branch_tables_with_values([depth, targets, arity, tables]: Sizes) -> Vec<u8> {
    let mut shape = Shape::new();
    let kind = shape.kind(0, arity);
    shape.run(0, {
        let mut body = times(depth, |_| vec![I::Block(BlockType::FunctionType(kind))]);
        body.extend(times(tables, |_| {
            let list: Vec<u32> = (0..targets).map(|at| at % depth).collect();
            let mut one = vec![I::Block(BlockType::FunctionType(kind))];
            one.extend(pushes(arity));
            one.extend([I::I32Const(2), I::BrTable(list.into(), 0), I::End]);
            one.extend(drops(arity));
            one
        }));
        body.extend(times(depth, |at| {
            let mut end = if at == 0 { pushes(arity) } else { Vec::new() };
            end.push(I::End);
            if at + 1 == depth {
                end.extend(drops(arity));
            }
            end
        }));
        body
    })
}

/// Loops, branches, values, functions: from the innermost to each.
fn back_edges(sizes: Sizes) -> Vec<u8> {
    branches(sizes, I::Loop)
}

/// Blocks, branches, values, functions: as [`back_edges`], outwards.
fn branches_out(sizes: Sizes) -> Vec<u8> {
    branches(sizes, I::Block)
}

fn branches(
    [depth, branches, arity, functions]: Sizes,
    open: fn(BlockType) -> I<'static>,
) -> Vec<u8> {
    let mut shape = Shape::new();
    let arity = arity - 1;
    let kind = shape.kind(arity, arity);
    shape.runs(functions, 0, || {
        let mut body = pushes(arity);
        body.extend(times(depth, |_| vec![open(BlockType::FunctionType(kind))]));
        body.extend(times(branches, |at| {
            vec![I::I32Const(0), I::BrIf(at % depth)]
        }));
        body.extend(times(depth, |_| vec![I::End]));
        body.extend(drops(arity));
        body
    })
}

/// Loops around, blocks in the innermost, values of each, functions.
fn blocks_in_loops([loops, blocks, arity, functions]: Sizes) -> Vec<u8> {
    let mut shape = Shape::new();
    let arity = arity - 1;
    let kind = shape.kind(arity, arity);
    shape.runs(functions, 0, || {
        let mut body = times(loops, |_| vec![I::Loop(BlockType::Empty)]);
        body.extend(pushes(arity));
        body.extend(times(blocks, |_| {
            vec![
                I::Block(BlockType::FunctionType(kind)),
                I::I32Const(0),
                I::BrIf(0),
                I::End,
            ]
        }));
        body.extend(drops(arity));
        body.extend(times(loops, |_| vec![I::I32Const(0), I::BrIf(0), I::End]));
        body
    })
}

/// Loops in a row that carry values, values, loops without any behind each, blocks without any behind each.
fn loops_among_blocks([loops, arity, empty_loops, empty_blocks]: Sizes) -> Vec<u8> {
    let mut shape = Shape::new();
    let arity = arity - 1;
    let kind = shape.kind(arity, arity);
    shape.run(0, {
        let mut body = pushes(arity);
        body.extend(times(loops, |_| {
            let mut one = vec![I::Loop(BlockType::FunctionType(kind)), I::End];
            one.extend(times(empty_loops - 1, |_| {
                vec![I::Loop(BlockType::Empty), I::End]
            }));
            one.extend(times(empty_blocks - 1, |_| {
                vec![
                    I::Block(BlockType::Empty),
                    I::I32Const(0),
                    I::BrIf(0),
                    I::End,
                ]
            }));
            one
        }));
        body.extend(drops(arity));
        body
    })
}

/// Loops in a row, values that each takes, all made anew before it, branches back, functions.
fn fresh_values_in_loops([loops, arity, back, functions]: Sizes) -> Vec<u8> {
    let mut shape = Shape::new();
    let arity = arity - 1;
    let kind = shape.kind(arity, arity);
    shape.runs(functions, 1, || {
        times(loops, |_| {
            let mut one = times(arity, |_| vec![I::LocalGet(0)]);
            one.push(I::Loop(BlockType::FunctionType(kind)));
            one.extend(times(back - 1, |_| vec![I::I32Const(0), I::BrIf(0)]));
            one.push(I::End);
            one.extend(times(arity, |_| vec![I::LocalSet(0)]));
            one
        })
    })
}

/// Loops around, values made in each and used behind it, branches back from each (odd: with), functions.
fn values_through_loops([loops, values, back, functions]: Sizes) -> Vec<u8> {
    let values = values - 1;
    Shape::new().runs(functions, 1, || {
        let mut body = times(loops, |at| {
            let mut one = vec![I::Loop(BlockType::Empty)];
            one.extend(times(values, |_| {
                vec![
                    I::LocalGet(0),
                    I::I64Const(i64::from(at)),
                    I::I64Add,
                    I::LocalTee(0),
                ]
            }));
            one
        });
        body.extend(times(loops, |_| {
            let mut one = Vec::new();
            one.extend(times(values, |_| vec![I::LocalSet(0)]));
            if back % 2 == 1 {
                one.extend([I::I32Const(0), I::BrIf(0)]);
            }
            one.push(I::End);
            one
        }));
        body
    })
}

/// Parameters, results, calls, functions.
fn calls([parameters, results, calls, functions]: Sizes) -> Vec<u8> {
    let mut shape = Shape::new();
    let kind = shape.kind(parameters - 1, results - 1);
    let callee = shape.function(kind, 0, pushes(results - 1));
    calling(
        shape,
        [parameters, results, calls, functions],
        &[I::Call(callee)],
    )
}

/// Parameters, results, calls, functions.
fn indirect_calls([parameters, results, calls, functions]: Sizes) -> Vec<u8> {
    let mut shape = Shape::new();
    let kind = shape.kind(parameters - 1, results - 1);
    let call = I::CallIndirect {
        type_index: kind,
        table_index: 0,
    };
    calling(
        shape,
        [parameters, results, calls, functions],
        &[I::I32Const(0), call],
    )
}

fn calling(
    shape: Shape,
    [parameters, results, calls, functions]: Sizes,
    call: &[I<'static>],
) -> Vec<u8> {
    shape.runs(functions, 0, || {
        times(calls, |_| {
            let mut one = pushes(parameters - 1);
            one.extend_from_slice(call);
            one.extend(drops(results - 1));
            one
        })
    })
}

/// Constants, of which each is dropped at once or added; functions.
fn constants([constants, added, functions, _]: Sizes) -> Vec<u8> {
    Shape::new().runs(functions, 0, || {
        times(constants, |at| {
            if added % 2 == 0 {
                vec![I::I64Const(i64::from(at)), I::Drop]
            } else {
                vec![
                    I::F64Const(Ieee64::from(f64::from(at))),
                    I::F64Const(Ieee64::from(0.5)),
                    I::F64Add,
                    I::Drop,
                ]
            }
        })
    })
}

/// Values on the stack, rounds, functions.
fn deep_stack([values, rounds, functions, _]: Sizes) -> Vec<u8> {
    Shape::new().runs(functions, 1, || {
        times(rounds, |_| {
            let mut round = times(values, |_| vec![I::LocalGet(0)]);
            round.extend(times(values - 1, |_| vec![I::I64Xor]));
            round.push(I::LocalSet(0));
            round
        })
    })
}

/// Values that stay on the stack, blocks after them, calls in each, functions.
fn stack_across_blocks([values, blocks, calls, functions]: Sizes) -> Vec<u8> {
    Shape::new().runs(functions, 1, || {
        let mut body = times(values, |_| vec![I::LocalGet(0), I::I64Const(1), I::I64Add]);
        body.extend(times(blocks, |_| {
            let mut block = vec![I::Loop(BlockType::Empty)];
            block.extend(times(calls - 1, |_| vec![I::MemorySize(0), I::Drop]));
            block.extend([I::I32Const(0), I::BrIf(0), I::End]);
            block
        }));
        body.extend(drops(values));
        body
    })
}

/// Selects, functions.
fn selects([selects, functions, locals, _]: Sizes) -> Vec<u8> {
    Shape::new().runs(functions, locals, || {
        times(selects, |at| {
            vec![
                I::LocalGet(at % locals),
                I::I64Const(1),
                I::LocalGet((at + 1) % locals),
                I::I32WrapI64,
                I::Select,
                I::LocalSet(at % locals),
            ]
        })
    })
}

/// So many operations one after the other, of the ways the one that `kind` chooses, after what they begin with and before
/// what they end with.
fn operations(
    [operations, functions, kind, _]: Sizes,
    begin: &[I<'static>],
    ways: &[&[I<'static>]],
    end: &[I<'static>],
) -> Vec<u8> {
    let way = ways[kind as usize % ways.len()];
    Shape::new().runs(functions, 0, || {
        let mut body = begin.to_vec();
        body.extend(times(operations, |_| way.to_vec()));
        body.extend_from_slice(end);
        body
    })
}

/// Operations, functions, which.
fn floats(sizes: Sizes) -> Vec<u8> {
    let other = I::F64Const(Ieee64::from(2.5));
    operations(
        sizes,
        &[I::F64Const(Ieee64::from(1.5))],
        &[
            &[I::F64Sqrt],
            &[I::F64Ceil],
            &[other.clone(), I::F64Min],
            &[other, I::F64Copysign, I::F64Nearest],
        ],
        &[I::Drop],
    )
}

/// Operations, functions, which.
fn conversions(sizes: Sizes) -> Vec<u8> {
    operations(
        sizes,
        &[I::F64Const(Ieee64::from(1.5))],
        &[
            &[I::I64TruncF64S, I::F64ConvertI64U],
            &[I::I64TruncSatF64U, I::F64ConvertI64S],
            &[I::I32TruncSatF64U, I::F64ConvertI32U],
        ],
        &[I::Drop],
    )
}

/// Operations, functions, which.
fn divisions(sizes: Sizes) -> Vec<u8> {
    operations(
        sizes,
        &[I::I64Const(7)],
        &[
            &[I::I64Const(3), I::I64DivS],
            &[I::I64Const(3), I::I64RemS],
            &[I::I64Popcnt, I::I64Clz],
        ],
        &[I::Drop],
    )
}

/// Operations, functions, which.
fn memory(sizes: Sizes) -> Vec<u8> {
    let at = MemArg {
        offset: 7,
        align: 0,
        target: MemArgTarget::Memory(0),
        ordering: None,
    };
    operations(
        sizes,
        &[],
        &[
            &[I::I32Const(0), I::I64Load(at), I::Drop],
            &[I::I32Const(0), I::I64Const(1), I::I64Store(at)],
            &[I::I32Const(0), I::I32Load8U(at), I::MemoryGrow(0), I::Drop],
        ],
        &[],
    )
}

/// Operations, functions, which.
fn bulk_memory(sizes: Sizes) -> Vec<u8> {
    let with = |operation| [I::I32Const(0), I::I32Const(0), I::I32Const(1), operation];
    operations(
        sizes,
        &[],
        &[
            &with(I::MemoryFill(0)),
            &with(I::MemoryCopy {
                src_mem: 0,
                dst_mem: 0,
            }),
            &with(I::MemoryInit {
                mem: 0,
                data_index: 0,
            }),
        ],
        &[],
    )
}

/// Globals, uses, functions.
fn globals([globals, uses, functions, _]: Sizes) -> Vec<u8> {
    let mut shape = Shape::new();
    for _ in 0..globals {
        let kind = GlobalType {
            val_type: ValType::I64,
            mutable: true,
            shared: false,
        };
        shape.globals.global(kind, &ConstExpr::i64_const(1));
    }
    shape.runs(functions, 0, || {
        times(uses, |at| {
            vec![I::GlobalGet(at % globals), I::GlobalSet((at + 1) % globals)]
        })
    })
}

/// Operations, functions, which.
fn tables(sizes: Sizes) -> Vec<u8> {
    let null = I::RefNull(wasm_encoder::HeapType::FUNC);
    operations(
        sizes,
        &[],
        &[
            &[I::I32Const(0), I::TableGet(0), I::Drop],
            &[I::I32Const(0), null.clone(), I::TableSet(0)],
            &[null, I::I32Const(0), I::TableGrow(0), I::Drop],
            &[I::RefFunc(0), I::RefIsNull, I::Drop],
        ],
        &[],
    )
}

/// Functions, parameters, results.
fn many_functions([functions, parameters, results, _]: Sizes) -> Vec<u8> {
    let mut shape = Shape::new();
    let kind = shape.kind(parameters - 1, results - 1);
    for _ in 0..functions {
        shape.function(kind, 0, pushes(results - 1));
    }
    shape.run(0, [])
}

/// Types, parameters, results.
fn many_types([types, parameters, results, _]: Sizes) -> Vec<u8> {
    let mut shape = Shape::new();
    for number in 0..types {
        shape.kind(parameters - 1 + number % 2, results - 1);
    }
    shape.run(0, [])
}

/// Element segments, entries of each, as functions or as expressions.
fn many_elements([segments, entries, which, _]: Sizes) -> Vec<u8> {
    let mut shape = Shape::new();
    (shape.elements, shape.entries) = (segments, entries);
    shape.are_expressions = which % 2 == 0;
    shape.run(0, [])
}

/// Data that code may name, in KiB, other segments of a byte, the KiB from each to the next.
fn sparse_data([kilobytes, segments, apart, _]: Sizes) -> Vec<u8> {
    let mut shape = Shape::new();
    shape.data_bytes = (kilobytes as usize) << 10;
    (shape.bytes, shape.apart) = (segments, apart << 10);
    shape.run(0, [I::DataDrop(0)])
}

/// Exports, the length of their names.
fn many_exports([exports, name, _, _]: Sizes) -> Vec<u8> {
    let mut shape = Shape::new();
    (shape.extra_exports, shape.name_bytes) = (exports, name as usize);
    shape.run(0, [])
}

/// Imports, calls of them, functions.
fn many_imports([imports, calls, functions, _]: Sizes) -> Vec<u8> {
    let mut shape = Shape::new();
    shape
        .types
        .ty()
        .function([ValType::I32, ValType::I32], [ValType::I32]);
    for _ in 0..imports {
        shape
            .imports
            .import("env", "oracle_query", EntityType::Function(0));
    }
    shape.imported = imports;
    shape.runs(functions, 0, || {
        times(calls, |at| {
            vec![
                I::I32Const(0),
                I::I32Const(0),
                I::Call(at % imports),
                I::Drop,
            ]
        })
    })
}

/// Results, returns, functions.
fn returns([results, returns, functions, _]: Sizes) -> Vec<u8> {
    let mut shape = Shape::new();
    let kind = shape.kind(0, results);
    for _ in 0..functions {
        let mut body = times(returns, |_| {
            let mut one = vec![I::I32Const(0), I::If(BlockType::Empty)];
            one.extend(pushes(results));
            one.extend([I::Return, I::End]);
            one
        });
        body.extend(pushes(results));
        shape.function(kind, 0, body);
    }
    shape.run(0, [])
}

/// Instructions after an `unreachable`, functions, blocks among them.
fn dead_code([instructions, functions, blocks, _]: Sizes) -> Vec<u8> {
    Shape::new().runs(functions, 0, || {
        let mut body = vec![I::Unreachable];
        body.extend(times(instructions, |_| vec![I::I64Add]));
        body.push(I::Drop);
        body.extend(times(blocks, |_| vec![I::Block(BlockType::Empty), I::End]));
        body
    })
}
