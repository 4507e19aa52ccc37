//! The families: what each shape is made of.

use wasm_encoder::{
    BlockType, ConstExpr, EntityType, GlobalType, Ieee64, Instruction as I, MemArg, MemArgTarget,
    ValType,
};

use super::{Shape, Sizes};

pub type Build = fn(Sizes) -> Vec<u8>;

pub const FAMILIES: &[(&str, Build)] = &[
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
