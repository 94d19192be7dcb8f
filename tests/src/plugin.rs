//! Plugins written by hand: WebAssembly text for the functions that matter to a
//! test, and defaults that any host would take for the rest.
//!
//! A [`PluginWat`] is a core module with an export for every function of its world.
//! Its functions get their parameters as the component model flattens them, as
//! locals from 0 on, and return the address of their result. Defaults give the
//! answer that means "as the built-in policy says", and `next` its first candidate.
//!
//! ```text
//!        0  zeroes: `built-in`, `ok`, an empty list        [`NOTHING`]
//!       64  where a body may put its answer                [`ANSWER`]
//!      128  what `describe` says
//!      512  the test's own data                            [`OWN`]
//!     1024  what `cabi_realloc` gives away, from here up   [`HEAP`]
//! ```

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::abi::{AbiVariant, WasmType};
use wit_parser::{Function, Resolve, WorldId, WorldItem};

use crate::command::root;

/// Where there is nothing but zeroes.
pub const NOTHING: u32 = 0;

/// Where a body may put its answer, 64 bytes.
pub const ANSWER: u32 = 64;

/// Where a test may put data of its own, 512 bytes.
pub const OWN: u32 = 512;

/// Where memory begins that the host is given for what it passes.
pub const HEAP: u32 = 1024;

/// Import of the one function that a plugin may have, as `$log`: level (0 is debug,
/// 3 is error), address and length of the message.
pub const LOG: &str = r#"(import "wharf:policy/log@0.1.0" "write"
    (func $log (param i32 i32 i32)))"#;

/// Answers `next` with the first candidate; the list is the seventh parameter.
const FIRST: &str = "
    (i32.store (i32.const 64) (i32.load (local.get 6)))
    (i64.store (i32.const 72) (i64.load offset=8 (local.get 6)))
    (i64.store (i32.const 80) (i64.const 0))
    (i32.const 64)";

/// Gives memory to the host. All of it is free again when the answer was read.
const REALLOC: &str = "
  (global $heap (mut i32) (i32.const 1024))
  (func $realloc (export \"cabi_realloc\")
    (param $old i32) (param $old_len i32) (param $align i32) (param $len i32) (result i32)
    (local $at i32)
    (local.set $at (i32.and
      (i32.add (global.get $heap) (i32.sub (local.get $align) (i32.const 1)))
      (i32.sub (i32.const 0) (local.get $align))))
    (global.set $heap (i32.add (local.get $at) (local.get $len)))
    (block $fits
      (loop $more
        (br_if $fits (i32.le_u (global.get $heap) (i32.shl (memory.size) (i32.const 16))))
        (br_if $more (i32.ne (memory.grow (i32.const 1)) (i32.const -1)))
        unreachable))
    (memory.copy (local.get $at) (local.get $old) (local.get $old_len))
    (local.get $at))";

/// A plugin in the making.
#[derive(Clone, Debug)]
pub struct PluginWat {
    world: String,
    contract: String,
    name: String,
    version: String,
    schemas: (u32, u32),
    bodies: BTreeMap<String, String>,
    imports: String,
    items: String,
}

impl PluginWat {
    /// A plugin for a slot: `scheduler`, `router` or `upgrader`.
    ///
    /// # Panics
    ///
    /// When the repository has no contract.
    #[must_use]
    pub fn new(slot: &str) -> Self {
        let contract = std::fs::read_to_string(root().join("wit/policy.wit"));
        Self {
            world: format!("{slot}-plugin"),
            contract: contract.expect("the contract is in the repository"),
            name: "hand-made".to_owned(),
            version: "1.0.0".to_owned(),
            schemas: (0, 0),
            bodies: BTreeMap::from([("next".to_owned(), FIRST.to_owned())]),
            imports: String::new(),
            items: String::new(),
        }
    }

    /// Says who it is instead of `hand-made 1.0.0`.
    #[must_use]
    pub fn identity(self, name: &str, version: &str) -> Self {
        Self {
            name: name.to_owned(),
            version: version.to_owned(),
            ..self
        }
    }

    /// The format of its state and the oldest that it reads, instead of none.
    #[must_use]
    pub fn schemas(self, schema: u32, oldest: u32) -> Self {
        Self {
            schemas: (schema, oldest),
            ..self
        }
    }

    /// Replaces a function's body by instructions that leave an address. They are the
    /// whole body: locals come first.
    #[must_use]
    pub fn body(mut self, function: &str, instructions: &str) -> Self {
        self.bodies
            .insert(function.to_owned(), instructions.to_owned());
        self
    }

    /// Adds an import, such as [`LOG`].
    #[must_use]
    pub fn import(mut self, import: &str) -> Self {
        self.imports.push_str(import);
        self
    }

    /// Adds to the module: functions, tables, data.
    #[must_use]
    pub fn item(mut self, item: &str) -> Self {
        self.items.push_str(item);
        self
    }

    /// Changes the contract that it is made by.
    #[must_use]
    pub fn contract(mut self, change: impl Fn(&str) -> String) -> Self {
        let changed = change(&self.contract);
        assert_ne!(changed, self.contract, "the change changes nothing");
        self.contract = changed;
        self
    }

    /// The core module as text.
    ///
    /// # Panics
    ///
    /// When the contract is none.
    #[must_use]
    pub fn text(&self) -> String {
        let (resolve, world) = self.resolve();
        self.text_of(&resolve, world)
    }

    /// The component.
    ///
    /// # Panics
    ///
    /// When the text is no module, or not one for the world.
    #[must_use]
    pub fn component(&self) -> Vec<u8> {
        let (resolve, world) = self.resolve();
        let mut module = wat::parse_str(self.text_of(&resolve, world)).expect("good text");
        embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8)
            .expect("the world can be described");
        let encoder = ComponentEncoder::default().validate(true).module(&module);
        let mut encoder = encoder.expect("the module is one of its world");
        encoder.encode().expect("the module can be a component")
    }

    /// Writes the component to a file.
    ///
    /// # Panics
    ///
    /// As [`Self::component`], and when it cannot be written.
    pub fn write(&self, path: &Path) {
        std::fs::write(path, self.component()).expect("the directory can be written");
    }

    fn resolve(&self) -> (Resolve, WorldId) {
        let mut resolve = Resolve::default();
        let package = resolve.push_source("policy.wit", &self.contract);
        let package = package.expect("a good contract");
        let world = resolve.select_world(&[package], Some(&self.world));
        (resolve, world.expect("the contract has the world"))
    }

    fn text_of(&self, resolve: &Resolve, world: WorldId) -> String {
        let mut functions = String::new();
        for (key, item) in &resolve.worlds[world].exports {
            let WorldItem::Interface { id, .. } = item else {
                panic!("the contract's worlds export interfaces only");
            };
            let interface = resolve.name_world_key(key);
            for function in resolve.interfaces[*id].functions.values() {
                functions.push_str(&self.function(resolve, &interface, function));
            }
        }
        let describe = 128;
        let words = describe + 24;
        let (name, version) = (&self.name, &self.version);
        let record = [
            words,
            len(name),
            words + len(name),
            len(version),
            self.schemas.0,
            self.schemas.1,
        ];
        let record = record.map(|word| bytes(&word.to_le_bytes())).concat();
        let words = [name.as_bytes(), version.as_bytes()].concat();
        assert!(words.len() < 256, "names are longer than their place");
        format!(
            "(module\n{imports}\n(memory (export \"memory\") 1)\n\
             (data (i32.const {describe}) \"{record}{words}\")\n\
             {REALLOC}\n{functions}\n{items})",
            imports = self.imports,
            words = bytes(&words),
            items = self.items,
        )
    }

    /// An export, and what the host calls when it has read the answer.
    fn function(&self, resolve: &Resolve, interface: &str, function: &Function) -> String {
        let name = function.legacy_core_export_name(Some(interface));
        let signature = resolve.wasm_signature(AbiVariant::GuestExport, function);
        let params: String = signature.params.iter().map(wat_type).collect();
        let results: String = signature.results.iter().map(wat_type).collect();
        let body = match self.bodies.get(&function.name) {
            Some(body) => body,
            None if function.name == "describe" => "(i32.const 128)",
            None => "(i32.const 0)",
        };
        let mut text = String::new();
        let _ = write!(
            text,
            "(func (export \"{name}\") (param{params}) (result{results}) {body})\n\
             (func (export \"cabi_post_{name}\") (param{results})\n\
             (global.set $heap (i32.const {HEAP})))\n"
        );
        text
    }
}

fn wat_type(it: &WasmType) -> &'static str {
    match it {
        WasmType::I64 | WasmType::PointerOrI64 => " i64",
        WasmType::F32 => " f32",
        WasmType::F64 => " f64",
        WasmType::I32 | WasmType::Pointer | WasmType::Length => " i32",
    }
}

fn len(text: &str) -> u32 {
    text.len().try_into().expect("a short text")
}

/// Bytes as a string of WebAssembly text.
fn bytes(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("\\{byte:02x}")).collect()
}
