//! The decoder under libFuzzer:
//! `cargo +nightly fuzz run --fuzz-dir tests/fuzz/libfuzzer frame tests/fuzz/corpus`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    dugnad_fuzz::frame(data);
});
