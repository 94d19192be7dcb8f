//! Components that are made to end or to stall whoever parses or compiles them. Each is
//! small, and is refused before that, with what it has too much of. `wharf policy check`
//! and a host that swaps read plugins by one function, which is what is tested here.

use std::fmt::Write;
use std::time::{Duration, Instant};

use wharf_policy::{Engine, Plugin, Refusal};
use wharf_tests::plugin::PluginWat;

/// How long a refusal may take on a machine that is busy. It needs milliseconds.
const AT_ONCE: Duration = Duration::from_secs(10);

fn open(component: &[u8]) -> Result<String, Refusal> {
    let engine = Engine::new(None).unwrap();
    Plugin::new(&engine, component).map(|plugin| plugin.title())
}

fn is_refused(component: &[u8], reason: &str) {
    let start = Instant::now();
    let said = open(component).unwrap_err().to_string();
    assert!(said.contains(reason), "{said}");
    assert!(start.elapsed() < AT_ONCE, "{:?}", start.elapsed());
}

fn text_is_refused(text: &str, reason: &str) {
    is_refused(&wat::parse_str(text).unwrap(), reason);
}

/// A component with a core function of this body.
fn function(body: &str) -> String {
    format!("(component (core module (func (param i32) {body})))")
}

/// A number as WebAssembly's LEB128 has it.
fn leb(mut number: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while number > 127 {
        bytes.push(u8::try_from(number & 127).unwrap() | 128);
        number >>= 7;
    }
    bytes.push(u8::try_from(number).unwrap());
    bytes
}

/// A component of one section, which holds this.
fn section(id: u8, bytes: &[u8]) -> Vec<u8> {
    [b"\0asm\x0d\0\x01\0", &[id][..], &leb(bytes.len()), bytes].concat()
}

/// A section of types: types of this kind inside each other, so deep.
fn types(kind: u8, depth: usize) -> Vec<u8> {
    let mut bytes = vec![1];
    for _ in 0..depth {
        bytes.extend([kind, 1, 1]);
    }
    bytes.extend([kind, 0]);
    section(7, &bytes)
}

#[test]
fn types_inside_types_without_end() {
    for (kind, depth) in [(0x41, 5_000), (0x42, 5_000), (0x42, 5_000_000)] {
        is_refused(&types(kind, depth), "more than 100 types inside types");
    }
    is_refused(&types(0x41, 50), "it has the type of a component");
    // What is let through is not too deep for a thread of the usual size.
    is_refused(&types(0x42, 99), "lifecycle");
}

/// Each names the one before it, so that nothing is inside anything as it is written.
#[test]
fn types_of_types_without_end() {
    let mut text = "(component (type $t0 u8)".to_owned();
    for n in 1..200_000 {
        let _ = write!(text, "(type $t{n} (list $t{}))", n - 1);
    }
    text.push_str("(import \"f\" (func (param \"it\" $t199999))))");
    text_is_refused(&text, "");
}

#[test]
fn components_without_number() {
    let text = format!("(component {})", "(component)".repeat(10_000));
    text_is_refused(&text, "more than 200 modules and components");
    let text = format!("(component {})", "(core module)".repeat(10_000));
    text_is_refused(&text, "more than 200 modules and components");
}

#[test]
fn components_inside_components() {
    let text = "(component ".repeat(20) + &")".repeat(20);
    text_is_refused(&text, "more than 8 components inside each other");
}

/// Each has two of the one before it: a few hundred bytes are a million instances.
#[test]
fn instances_that_double() {
    let mut text = "(component $x (component $c0)".to_owned();
    for n in 1..40 {
        let before = n - 1;
        let _ = write!(
            text,
            "(component $c{n} (alias outer $x $c{before} (component $it))
               (instance (instantiate $it)) (instance (instantiate $it)))"
        );
    }
    text.push_str("(instance (instantiate $c39)))");
    text_is_refused(&text, "more than 100000 imports, exports and instances");
}

#[test]
fn blocks_inside_blocks() {
    for (block, most) in [("block", "2000 blocks"), ("loop", "100 loops")] {
        let body = format!("{block} ").repeat(100_000) + &"end ".repeat(100_000);
        text_is_refused(
            &function(&body),
            &format!("more than {most} inside each other"),
        );
    }
}

#[test]
fn a_function_without_end() {
    let body = "(drop (i32.const 1234567))".repeat(200_000);
    text_is_refused(
        &function(&body),
        "more than 1048576 bytes of code in a function",
    );
}

#[test]
fn locals_without_number() {
    let body = format!("(local {})", "i32 ".repeat(30_000));
    text_is_refused(&function(&body), "more than 10000 locals in a function");
}

/// The compiler follows every local through every block.
#[test]
fn locals_in_blocks() {
    let locals = format!("(local {})", "i32 ".repeat(10_000));
    let body = locals + &"(if (local.get 0) (then nop))".repeat(10_000);
    text_is_refused(&function(&body), "values at the blocks of a function");
}

/// Each branch carries what its block takes.
#[test]
fn branches_that_carry_much() {
    let results = "i32 ".repeat(90);
    let values = "i32.const 0 ".repeat(91);
    let targets = "0 ".repeat(500_000);
    let body = format!(
        "(block (result {results}) {values} br_table {targets}) {}",
        "drop ".repeat(90)
    );
    text_is_refused(&function(&body), "values at the blocks of a function");
}

#[test]
fn functions_without_number() {
    let text = format!("(component (core module {}))", "(func)".repeat(200_000));
    text_is_refused(&text, "more than 100000 functions");
}

#[test]
fn tables_and_memories_that_no_instance_gets() {
    for (item, count, reason) in [
        ("(table 1 funcref)", 49, "more than 48 tables"),
        ("(memory 1)", 17, "more than 16 memories"),
        (
            "(table 10001 funcref)",
            1,
            "more than 10000 elements in a table",
        ),
    ] {
        let text = format!("(component (core module {}))", item.repeat(count));
        text_is_refused(&text, reason);
    }
}

/// As much as is let through, at once: it is compiled in a time that one can wait.
#[test]
fn what_is_within_the_bounds_compiles() {
    let nest =
        |block: &str, depth| format!("{block} ").repeat(depth) + "br 0 " + &"end ".repeat(depth);
    let worst = [
        nest("block", 2000).repeat(4),
        nest("loop", 100).repeat(20),
        format!("(local {})", "i64 ".repeat(1000))
            + &"(if (local.get 0) (then (local.set 1 (local.get 2))))".repeat(2000),
    ];
    let functions: String = worst
        .iter()
        .map(|body| format!("(func (param i32 i64 i64) {body})"))
        .collect();
    let plugin = PluginWat::new("scheduler").item(&functions);
    let start = Instant::now();
    assert_eq!(open(&plugin.component()).unwrap(), "hand-made 1.0.0");
    assert!(
        start.elapsed() < Duration::from_secs(120),
        "{:?}",
        start.elapsed()
    );
}
