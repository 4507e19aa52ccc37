;; 0/0, sqrt(-1), a NaN with a payload added to 1, inf - inf: 32 bytes.
(module
  (import "env" "emit_structured_claim" (func $emit (param i32 i32) (result i32)))
  (memory (export "memory") 1)
  (global $zero (mut f64) (f64.const 0))
  (func (export "run")
    (f64.store (i32.const 0) (f64.div (global.get $zero) (global.get $zero)))
    (f64.store (i32.const 8) (f64.sqrt (f64.sub (global.get $zero) (f64.const 1))))
    (f64.store (i32.const 16) (f64.add (f64.const -nan:0x123456) (f64.const 1)))
    (f64.store (i32.const 24) (f64.sub (f64.const inf) (f64.add (global.get $zero) (f64.const inf))))
    (drop (call $emit (i32.const 0) (i32.const 32)))))
