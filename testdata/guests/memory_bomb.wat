;; Takes all the memory it can get, then one byte more.
(module
  (memory (export "memory") 1)
  (func (export "run")
    (loop $more
      (br_if $more (i32.ne (memory.grow (i32.const 16)) (i32.const -1))))
    (i32.store8 (i32.mul (memory.size) (i32.const 65536)) (i32.const 1))))
