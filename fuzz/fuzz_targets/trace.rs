#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| evidenceos_fuzz::trace::check(bytes));
