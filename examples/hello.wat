;; A WebAssembly program in its text form: `roost run examples/hello.wat` says hello.
(module
  (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  ;; one struct iovec: the address and the length of the text
  (data (i32.const 0) "\08\00\00\00\17\00\00\00hello from WebAssembly\n")
  (func (export "_start")
    (drop (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 40)))))
