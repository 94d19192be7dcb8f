//! What an author of plugins is promised: a package to start from, a build that
//! finds its tools by itself, and a check that says what a host would.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;
use wharf_model::policy::{Answer, Candidate, Question, View};
use wharf_policy::{Engine, Instance, Plugin, Setup};
use wharf_tests::command::{Printed, output, root, wharf};
use wharf_tests::plugin::{LOG, PluginWat};
use wit_bindgen_core::Files;
use wit_component::ComponentEncoder;
use wit_parser::Resolve;

/// Where the packages of these tests are built: once for all of them, and kept for
/// the next time.
const TARGET: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/plugins");

/// The binary with these arguments, building there.
fn wharf_there(args: &[&str]) -> Printed {
    output(wharf(args).env("CARGO_TARGET_DIR", TARGET))
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A file in a directory of its own.
fn file(name: &str, bytes: &[u8]) -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(name);
    fs::write(&path, bytes).unwrap();
    (directory, path)
}

/// What `wharf policy check` says of a component that is there.
fn check(bytes: &[u8]) -> Printed {
    let (_directory, path) = file("plugin.wasm", bytes);
    output(&mut wharf(["policy", "check", text(&path)]))
}

/// Why `wharf policy check` refuses it, without the file's name.
fn refusal(bytes: &[u8]) -> String {
    let printed = check(bytes);
    assert_eq!((printed.status, printed.stdout.as_str()), (125, ""));
    assert_eq!(printed.stderr.lines().count(), 1, "{}", printed.stderr);
    let (_, reason) = printed.stderr.split_once(" is no plugin: ").unwrap();
    reason.trim_end().to_owned()
}

/// Makes a plugin's package for a slot, and builds it; says so when nothing on this
/// machine can.
fn scaffold(directory: &Path, name: &str, slot: &str) -> Option<(PathBuf, PathBuf)> {
    let package = directory.join(name);
    let made = wharf_there(&["new", "plugin", text(&package), "--slot", slot]);
    assert_eq!(made.status, 0, "{}", made.stderr);
    let next = format!("    wharf policy check {}\n", package.display());
    assert!(made.stdout.contains(&next), "{}", made.stdout);
    let built = wharf_there(&["build", text(&package)]);
    if built
        .stderr
        .contains("nothing here compiles to WebAssembly")
    {
        // Not `eprintln!`, which the harness swallows.
        let _ = writeln!(std::io::stderr(), "SKIPPED: {}", built.stderr);
        return None;
    }
    assert_eq!(built.status, 0, "{}", built.stderr);
    Some((package, PathBuf::from(built.stdout.trim_end())))
}

/// A package of its own with this source and these lines at the end of its manifest.
fn package(directory: &Path, source: &str, manifest: &str) {
    let start = "[package]\nname = \"odd\"\nversion = \"0.1.0\"\nedition = \"2024\"\n[workspace]\n";
    fs::create_dir_all(directory.join("src")).unwrap();
    fs::write(directory.join("Cargo.toml"), format!("{start}{manifest}")).unwrap();
    fs::write(directory.join("src/lib.rs"), source).unwrap();
}

#[test]
fn a_new_plugin_of_every_slot_builds_passes_its_tests_and_would_be_taken() {
    let root = tempfile::tempdir().unwrap();
    for slot in ["scheduler", "router", "upgrader"] {
        let name = format!("my-{slot}");
        let Some((package, component)) = scaffold(root.path(), &name, slot) else {
            return;
        };
        let there = Path::new(TARGET).join(format!("wharf/{name}.wasm"));
        assert_eq!(component, there);

        let checked = wharf_there(&["policy", "check", "--json", text(&package)]);
        assert_eq!(checked.status, 0, "{}", checked.stderr);
        for part in [
            format!("\"name\": \"{name}\""),
            format!("\"slots\": [\n    \"{slot}\"\n  ]"),
            format!("\"file\": \"{}\"", there.display()),
            format!("\"wharf:policy/{slot}@0.1.0\""),
        ] {
            assert!(checked.stdout.contains(&part), "{part}: {}", checked.stdout);
        }
        // Nothing but what `wit/` names, types aside none of it.
        assert!(!checked.stdout.contains("wasi"), "{}", checked.stdout);

        let tests = output(
            Command::new(env!("CARGO"))
                .args(["test", "--quiet"])
                .current_dir(&package)
                .env("CARGO_TARGET_DIR", TARGET),
        );
        assert_eq!(tests.status, 0, "{}{}", tests.stdout, tests.stderr);
        assert!(tests.stdout.contains("3 passed"), "{}", tests.stdout);
    }
}

#[test]
fn what_does_not_build_or_would_not_be_taken_replaces_nothing() {
    let root = tempfile::tempdir().unwrap();
    let Some((package, component)) = scaffold(root.path(), "changing", "scheduler") else {
        return;
    };
    let good = fs::read(&component).unwrap();
    let path = package.join("src/lib.rs");
    let source = fs::read_to_string(&path).unwrap();
    for (from, to, reason) in [
        (
            "oldest_schema: 0",
            "oldest_schema: ",
            "its messages are above",
        ),
        (
            "oldest_schema: 0",
            "oldest_schema: 2",
            "it reads state formats from 2 on, but writes 0",
        ),
        (
            "state_schema: 0",
            "state_schema: panic!()",
            "changing was built, but is no plugin",
        ),
    ] {
        fs::write(&path, source.replace(from, to)).unwrap();
        let built = wharf_there(&["build", text(&package)]);
        assert_eq!((built.status, built.stdout.as_str()), (125, ""), "{to}");
        assert!(built.stderr.contains(reason), "{to}: {}", built.stderr);
        assert_eq!(fs::read(&component).unwrap(), good, "{to}");
    }
    // A change that is good is built, by whoever needs it.
    let changed = source.replace("env!(\"CARGO_PKG_VERSION\")", "\"7.7.7\"");
    fs::write(&path, changed).unwrap();
    let checked = wharf_there(&["policy", "check", text(&package)]);
    assert_eq!(checked.status, 0, "{}", checked.stderr);
    let version = checked.stdout.lines().nth(1);
    assert_eq!(version, Some("version   7.7.7"));
}

#[test]
fn a_package_that_is_no_plugin_is_refused_with_the_way_out() {
    let root = tempfile::tempdir().unwrap();
    let (library, plain) = (root.path().join("library"), root.path().join("plain"));
    package(&library, "", "");
    package(&plain, "", "[lib]\ncrate-type = [\"cdylib\"]\n");
    for (command, source, reason) in [
        (
            &["build"][..],
            &library,
            "package odd is neither a guest, which is a binary such as src/main.rs, nor a plugin",
        ),
        (
            &["policy", "check"],
            &library,
            "package odd is no plugin, which is a library with crate-type = [\"cdylib\"]",
        ),
        // It compiles, and knows nothing of the contract.
        (
            &["build"],
            &plain,
            "odd was built, but is no plugin: it does not export wharf:policy/lifecycle@0.1.0",
        ),
        (&["run"], &plain, "package odd has no binary"),
    ] {
        let printed = wharf_there(&[command, &[text(source)]].concat());
        assert_eq!((printed.status, printed.stdout.as_str()), (125, ""));
        let last = printed.stderr.lines().last().unwrap();
        let skipped = last.contains("nothing here compiles to WebAssembly");
        assert!(skipped || last.contains(reason), "{last}");
    }
}

#[test]
fn a_component_of_another_language_is_taken() {
    for slot in ["scheduler", "router", "upgrader"] {
        let plugin = PluginWat::new(slot)
            .identity("by-hand", "2.0.0-rc.1")
            .schemas(3, 1)
            .import(LOG)
            .body(
                "configure",
                "(call $log (i32.const 1) (i32.const 152) (i32.const 7)) (i32.const 0)",
            );
        let component = plugin.component();
        let (_directory, path) = file("by hand.wasm", &component);
        let checked = output(&mut wharf(["policy", "check", text(&path)]));
        assert_eq!(checked.status, 0, "{}", checked.stderr);
        let lines: Vec<&str> = checked.stdout.lines().collect();
        let expected = [
            "name      by-hand".to_owned(),
            "version   2.0.0-rc.1".to_owned(),
            format!("slots     {slot}"),
            "state     format 3; reads 1 to 3".to_owned(),
            format!("file      {}", path.display()),
            format!("size      {} bytes", component.len()),
        ];
        assert_eq!(lines[..6], expected);
        assert!(
            lines.contains(&"imports   wharf:policy/log@0.1.0"),
            "{lines:?}"
        );
        assert!(
            lines.contains(&"exports   wharf:policy/lifecycle@0.1.0"),
            "{lines:?}"
        );

        let built = output(&mut wharf(["build", text(&path)]));
        assert_eq!((built.status, built.stdout.trim_end()), (0, text(&path)));
    }
}

/// Which replica a scheduler runs, of 0 and of 7, which weighs more.
fn runs(component: &[u8]) -> u32 {
    let plugin = Plugin::new(&Engine::new(None).unwrap(), component).unwrap();
    let mut instance = Instance::new(&plugin).unwrap();
    instance.configure(&Setup::default()).unwrap();
    let candidate = |replica, weight| Candidate {
        replica,
        weight,
        generation: 3,
        ran: 0,
        virtual_time: 0,
        ready_since: 0,
    };
    let view = View {
        ready: vec![candidate(0, 100), candidate(7, 200)],
        ..View::default()
    };
    let mut replica = u32::MAX;
    // More often than would fit if what is passed were not given back.
    for _ in 0..5000 {
        let question = Question::Next(view.clone());
        let answer = instance.ask(&question, Duration::from_secs(1)).unwrap();
        let Answer::Next(choice) = answer else {
            panic!("{answer:?}");
        };
        assert_eq!(choice.generation, 3);
        replica = choice.replica;
    }
    replica
}

#[test]
fn a_component_of_another_language_decides() {
    assert_eq!(runs(&PluginWat::new("scheduler").component()), 0);
}

/// A C compiler for WebAssembly, and the linker that comes with rustup's compilers.
fn clang() -> Option<(String, PathBuf)> {
    let rust = Command::new("rustc")
        .args(["--print", "target-libdir"])
        .output();
    let rust = String::from_utf8(rust.ok()?.stdout).ok()?;
    let linker = Path::new(rust.trim()).with_file_name("bin/rust-lld");
    let numbered = (14..30).rev().map(|version| format!("clang-{version}"));
    let mut names = std::iter::once("clang".to_owned()).chain(numbered);
    let clang = names.find(|name| {
        let targets = Command::new(name).arg("--print-targets").output();
        targets.is_ok_and(|it| String::from_utf8_lossy(&it.stdout).contains("wasm32"))
    });
    linker.is_file().then(|| clang.map(|it| (it, linker)))?
}

#[test]
fn a_component_made_from_c_is_taken_and_decides() {
    let Some((clang, linker)) = clang() else {
        let _ = writeln!(
            std::io::stderr(),
            "SKIPPED: no clang compiles C to WebAssembly here; components from text are tested"
        );
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let mut resolve = Resolve::default();
    let (package, _) = resolve.push_path(root().join("wit")).unwrap();
    let world = resolve.select_world(&[package], Some("scheduler-plugin"));
    let mut files = Files::default();
    wit_bindgen_c::Opts::default()
        .build()
        .generate(&mut resolve, world.unwrap(), &mut files)
        .unwrap();
    for (name, bytes) in files.iter() {
        fs::write(directory.path().join(name), bytes).unwrap();
    }
    let c = root().join("tests/c");
    let run = |command: &mut Command| {
        let printed = output(command.current_dir(&directory));
        assert_eq!(printed.status, 0, "{}", printed.stderr);
    };
    run(Command::new(clang)
        .args(["--target=wasm32-unknown-unknown", "-std=c11", "-O2", "-c"])
        .args(["-ffreestanding", "-fno-builtin", "-I.", "-isystem"])
        .args([c.join("include"), c.join("heaviest.c")])
        .arg("scheduler_plugin.c"));
    run(Command::new(linker)
        .args(["-flavor", "wasm", "--no-entry", "-o", "core.wasm"])
        .args(["heaviest.o", "scheduler_plugin.o"])
        .arg("scheduler_plugin_component_type.o"));
    let module = fs::read(directory.path().join("core.wasm")).unwrap();
    let encoder = ComponentEncoder::default().validate(true).module(&module);
    let component = encoder.unwrap().encode().unwrap();
    let checked = check(&component);
    assert_eq!(checked.status, 0, "{}", checked.stderr);
    assert!(
        checked.stdout.starts_with("name      heaviest\n"),
        "{}",
        checked.stdout
    );
    assert_eq!(runs(&component), 7);
}

#[test]
fn what_is_no_component_is_refused() {
    let core = wat::parse_str("(module)").unwrap();
    let cut = &PluginWat::new("router").component()[..100];
    for (bytes, reason) in [
        (
            &core[..],
            "it is a core WebAssembly module, not a component",
        ),
        (b"", "it is no WebAssembly component"),
        (b"\x7fELF and so on", "it is no WebAssembly component"),
        (&[0x5a; 4096], "it is no WebAssembly component"),
        (cut, "it is no valid component"),
    ] {
        let refusal = refusal(bytes);
        assert!(refusal.starts_with(reason), "{refusal}");
    }
    let directory = tempfile::tempdir().unwrap();
    let missing = directory.path().join("missing.wasm");
    let printed = output(&mut wharf(["policy", "check", text(&missing)]));
    assert_eq!(printed.status, 125);
    assert!(
        printed.stderr.contains("No such file"),
        "{}",
        printed.stderr
    );
}

#[test]
fn a_component_that_wants_or_gives_something_else_is_refused() {
    let clock = wat::parse_str(
        r#"(component
            (import "wasi:clocks/monotonic-clock@0.2.0"
                (instance (export "now" (func (result u64))))))"#,
    );
    let files = PluginWat::new("router")
        .contract(|wit| {
            wit.replace(
                "world router-plugin {",
                "interface files { open: func(name: string); }\n\
                 world router-plugin { import files;",
            )
        })
        .import("(import \"wharf:policy/files@0.1.0\" \"open\" (func (param i32 i32)))");
    let older = |wit: &str| wit.replace("wharf:policy@0.1.0", "wharf:policy@0.0.9");
    let older = PluginWat::new("scheduler").contract(older);
    let lifeless = |wit: &str| wit.replace("export lifecycle;", "");
    let lifeless = PluginWat::new("scheduler").contract(lifeless);
    let slotless = |wit: &str| wit.replace("export upgrader;", "");
    let slotless = PluginWat::new("upgrader").contract(slotless);
    for (component, reason) in [
        (
            clock.unwrap(),
            "it imports \"wasi:clocks/monotonic-clock@0.2.0\", which plugins may not have",
        ),
        (
            files.component(),
            "it imports \"wharf:policy/files@0.1.0\", which plugins may not have",
        ),
        (
            older.component(),
            "it speaks wharf:policy 0.0.9, this host speaks 0.1.0",
        ),
        (
            lifeless.component(),
            "it does not export wharf:policy/lifecycle@0.1.0",
        ),
        (
            slotless.component(),
            "it exports none of wharf:policy's scheduler, router and upgrader",
        ),
        (wat::parse_str("(component)").unwrap(), "it does not export"),
    ] {
        let refusal = refusal(&component);
        assert!(refusal.starts_with(reason), "{refusal}");
    }
}

#[test]
fn a_component_of_another_shape_is_refused() {
    let other = |wit: &str| wit.replace("slice: nanos,\n  }", "slice: u32,\n  }");
    let other = PluginWat::new("scheduler").contract(other);
    let refusal = refusal(&other.component());
    assert!(refusal.contains("expected `u64` found `u32`"), "{refusal}");
}

#[test]
fn a_plugin_that_does_not_say_who_it_is_is_refused() {
    for (name, body, reason) in [
        ("traps", "unreachable", "trap"),
        (
            "loops",
            "(loop $for_ever (br $for_ever)) unreachable",
            "longer than",
        ),
        ("lies", "(i32.const -4)", "describe"),
    ] {
        let plugin = PluginWat::new("scheduler").body("describe", body);
        let refusal = refusal(&plugin.component());
        assert!(refusal.contains(reason), "{name}: {refusal}");
    }
}
