;; Halts only for want of fuel.
(module
  (memory (export "memory") 1)
  (func (export "run") (loop $again (br $again))))
