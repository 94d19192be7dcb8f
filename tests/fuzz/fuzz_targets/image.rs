//! Any bytes are an image or an error, and an image can be asked for everything.
//!
//! From the root of the repository, with a stable compiler:
//!
//! ```text
//! RUSTC_BOOTSTRAP=1 cargo fuzz run --fuzz-dir tests/fuzz image -- -max_total_time=60
//! ```

#![no_main]

use libfuzzer_sys::fuzz_target;
use wharf_machine::image::{IMAGE_MEMORY_MAX, Image, SYMBOL_CHARS_MAX, Segment};

fuzz_target!(|bytes: &[u8]| {
    match Image::parse(bytes.to_vec()) {
        Ok(image) => walk(&image),
        Err(error) => assert!(!error.to_string().contains(char::is_control)),
    }
});

fn walk(image: &Image) {
    assert!(!image.manifest().name.is_empty());
    let segments = image.segments();
    let span = image.span();
    for (segment, next) in segments.iter().zip(segments.iter().skip(1)) {
        assert!(segment.pages().end <= next.pages().start);
    }
    let pages = segments.iter().map(Segment::pages);
    assert!(pages.map(|p| p.end - p.start).sum::<u64>() <= IMAGE_MEMORY_MAX);
    for segment in segments {
        assert_eq!(image.segment_bytes(segment).len() as u64, segment.file_len);
        assert!(span.start <= segment.addr && segment.range().end <= span.end);
        assert!(!(segment.access.is_writable() && segment.access.is_executable()));
    }
    let writable = |from: u64, to: u64| {
        let mut segments = segments.iter().filter(|s| s.access.is_writable());
        segments.any(|s| s.pages().start <= from && to <= s.pages().end)
    };
    for relocation in image.relocations() {
        assert!(writable(relocation.offset, relocation.offset + 8));
    }
    if let Some(relro) = image.relro() {
        assert!(relro.start < relro.end && writable(relro.start, relro.end));
        assert!((relro.start | relro.end).is_multiple_of(4096));
    }
    let symbols = image.symbols();
    for segment in segments {
        let probes = 64.min(segment.mem_len);
        for nth in 0..probes {
            let addr = segment.addr + segment.mem_len / probes * nth;
            if let Some((name, offset)) = symbols.lookup(addr) {
                assert!(offset <= addr);
                assert!(name.chars().count() <= SYMBOL_CHARS_MAX);
                assert!(!name.contains(char::is_control));
            }
        }
    }
}
