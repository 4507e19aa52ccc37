;; Learns from answers: keeps each of eight flips unless it lowers the symbol.
(module
  (import "env" "oracle_query" (func $ask (param i32 i32) (result i32)))
  (import "env" "submit_predictions" (func $submit (param i32 i32) (result i32)))
  (import "env" "emit_structured_claim" (func $emit (param i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "run") (local $item i32) (local $best i32) (local $now i32)
    (local.set $best (call $ask (i32.const 0) (i32.const 16)))
    (loop $next
      (i32.store8 (local.get $item) (i32.const 1))
      (local.set $now (call $ask (i32.const 0) (i32.const 16)))
      (if (i32.lt_u (local.get $now) (local.get $best))
        (then (i32.store8 (local.get $item) (i32.const 0)))
        (else (local.set $best (local.get $now))))
      (local.set $item (i32.add (local.get $item) (i32.const 1)))
      (br_if $next (i32.lt_u (local.get $item) (i32.const 8))))
    (drop (call $submit (i32.const 0) (i32.const 16)))
    (i32.store8 (i32.const 64) (local.get $best))
    (drop (call $emit (i32.const 64) (i32.const 1)))))
