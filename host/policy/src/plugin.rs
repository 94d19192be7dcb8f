//! A compiled component that was found to be a plugin.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use semver::Version;
use sha2::{Digest, Sha256};
use wasmtime::component::types::{Component as ComponentType, ComponentItem};
use wasmtime::component::{Component, InstancePre};
use wharf_model::policy::SlotName;
use wharf_model::policy::check::short;

use crate::bindings::{VERSION, lifecycle, router, scheduler, upgrader};
use crate::bounds::{self, Excess};
use crate::engine::Engine;
use crate::instance::{Fault, Instance, shape};
use crate::sandbox::Sandbox;

/// Bytes of the largest component that is looked at. Python's are 18 MB.
pub(crate) const COMPONENT_LEN: u64 = 32 << 20;

const PACKAGE: &str = "wharf:policy/";

/// Why a file is not taken as a plugin.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// It cannot be read.
    #[error("cannot read it: {0}")]
    Read(#[source] std::io::Error),
    /// It is no file.
    #[error("it is no regular file")]
    NoFile,
    /// It is too large.
    #[error("it is larger than {} MiB, which no policy needs", COMPONENT_LEN >> 20)]
    TooLarge,
    /// It is a core module.
    #[error(
        "it is a core WebAssembly module, not a component: `wharf build` makes components of packages"
    )]
    CoreModule,
    /// It is something else.
    #[error("it is no WebAssembly component")]
    NoComponent,
    /// It could stall the host or end it while it is compiled.
    #[error(transparent)]
    Excess(#[from] Excess),
    /// It does not compile.
    #[error("it is no valid component: {0}")]
    Invalid(String),
    /// It wants something that no plugin may have.
    #[error("it imports {name:?}, which plugins may not have: they have wharf:policy/log only")]
    Import {
        /// What it imports.
        name: String,
    },
    /// It was made for another version of the contract.
    #[error(
        "it speaks wharf:policy {theirs}, this host speaks {VERSION}: build it with the host's `wit`"
    )]
    Version {
        /// The version it was made for.
        theirs: String,
    },
    /// It lacks what every plugin has.
    #[error("it does not export wharf:policy/lifecycle@{VERSION}")]
    NoLifecycle,
    /// It has no questions that it answers.
    #[error("it exports none of wharf:policy's scheduler, router and upgrader")]
    NoSlot,
    /// It has not the contract's types, or does not say who it is.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// Its numbers contradict each other.
    #[error("it reads state formats from {oldest} on, but writes {schema}")]
    Schemas {
        /// The oldest format that it reads.
        oldest: u32,
        /// The one that it writes.
        schema: u32,
    },
}

/// Who a plugin says that it is, made fit to print.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// The format of the state that it writes; 0 when it has none.
    pub state_schema: u32,
    /// The oldest format that it reads.
    pub oldest_schema: u32,
}

/// A plugin that could be put into a slot.
pub struct Plugin {
    pub(crate) engine: Engine,
    pub(crate) pre: InstancePre<Sandbox>,
    pub(crate) exports: Exports,
    /// Who it is.
    pub identity: Identity,
    /// SHA-256 of the component, in hexadecimal.
    pub digest: String,
    /// The component itself, for another process that is to go on with it.
    pub component: Arc<[u8]>,
    /// What it imports and exports, by name.
    pub surface: Surface,
}

/// The names at a component's surface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Surface {
    /// What it is given.
    pub imports: Vec<String>,
    /// What it gives.
    pub exports: Vec<String>,
}

pub(crate) struct Exports {
    pub(crate) lifecycle: lifecycle::GuestIndices,
    pub(crate) scheduler: Option<scheduler::GuestIndices>,
    pub(crate) router: Option<router::GuestIndices>,
    pub(crate) upgrader: Option<upgrader::GuestIndices>,
}

impl Plugin {
    /// Reads, compiles and examines a component.
    ///
    /// # Errors
    ///
    /// Why it is no plugin.
    pub fn open(engine: &Engine, path: &Path) -> Result<Arc<Self>, Refusal> {
        Self::new(engine, &read(path)?)
    }

    /// Compiles and examines a component.
    ///
    /// # Errors
    ///
    /// Why it is no plugin.
    pub fn new(engine: &Engine, bytes: &[u8]) -> Result<Arc<Self>, Refusal> {
        match bytes.get(..8) {
            Some(b"\0asm\x0d\0\x01\0") => {}
            Some(b"\0asm\x01\0\0\0") => return Err(Refusal::CoreModule),
            _ => return Err(Refusal::NoComponent),
        }
        // Whoever compiles it: bytes that were not read from a file, too.
        bounds::check(bytes)?;
        let invalid = |e: wasmtime::Error| Refusal::Invalid(short(&format!("{e:#}")));
        let component = Component::from_binary(&engine.wasmtime, bytes).map_err(invalid)?;
        let surface = examine(engine, &component.component_type())?;
        let pre = engine.linker.instantiate_pre(&component).map_err(invalid)?;
        let has = |slot: SlotName| surface.offers(slot.as_str());
        if !surface.offers("lifecycle") {
            return Err(Refusal::NoLifecycle);
        }
        if !SlotName::ALL.into_iter().any(has) {
            return Err(Refusal::NoSlot);
        }
        let exports = Exports {
            lifecycle: shape("lifecycle", lifecycle::GuestIndices::new(&pre))?,
            scheduler: has(SlotName::Scheduler)
                .then(|| shape("scheduler", scheduler::GuestIndices::new(&pre)))
                .transpose()?,
            router: has(SlotName::Router)
                .then(|| shape("router", router::GuestIndices::new(&pre)))
                .transpose()?,
            upgrader: has(SlotName::Upgrader)
                .then(|| shape("upgrader", upgrader::GuestIndices::new(&pre)))
                .transpose()?,
        };
        let nameless = Arc::new(Self {
            engine: engine.clone(),
            pre,
            exports,
            identity: Identity {
                name: String::new(),
                version: String::new(),
                state_schema: 0,
                oldest_schema: 0,
            },
            digest: digest(bytes),
            component: bytes.into(),
            surface,
        });
        let said = Instance::new(&nameless)?.describe()?;
        if said.oldest_schema > said.state_schema {
            return Err(Refusal::Schemas {
                oldest: said.oldest_schema,
                schema: said.state_schema,
            });
        }
        let mut plugin = Arc::into_inner(nameless).ok_or(Refusal::NoComponent)?;
        plugin.identity = Identity {
            name: word(&said.name),
            version: word(&said.version),
            state_schema: said.state_schema,
            oldest_schema: said.oldest_schema,
        };
        Ok(Arc::new(plugin))
    }

    /// Says whether it answers the questions of a slot.
    #[must_use]
    pub const fn fits(&self, slot: SlotName) -> bool {
        match slot {
            SlotName::Scheduler => self.exports.scheduler.is_some(),
            SlotName::Router => self.exports.router.is_some(),
            SlotName::Upgrader => self.exports.upgrader.is_some(),
        }
    }

    /// The slots that it fits.
    #[must_use]
    pub fn slots(&self) -> Vec<SlotName> {
        SlotName::ALL
            .into_iter()
            .filter(|slot| self.fits(*slot))
            .collect()
    }

    /// Name and version.
    #[must_use]
    pub fn title(&self) -> String {
        format!("{} {}", self.identity.name, self.identity.version)
    }
}

impl fmt::Debug for Plugin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Plugin")
            .field("identity", &self.identity)
            .field("digest", &self.digest)
            .finish_non_exhaustive()
    }
}

impl Surface {
    fn offers(&self, interface: &str) -> bool {
        let named = |name: &String| {
            let rest = name.strip_prefix(PACKAGE);
            let interface_of = |rest: &str| rest.split('@').next() == Some(interface);
            rest.is_some_and(interface_of)
        };
        self.exports.iter().any(named)
    }
}

/// The bytes of a regular file that is not too large.
fn read(path: &Path) -> Result<Vec<u8>, Refusal> {
    // Opening a pipe would wait for somebody to write.
    let metadata = std::fs::metadata(path).map_err(Refusal::Read)?;
    if !metadata.is_file() {
        return Err(Refusal::NoFile);
    }
    let file = File::open(path).map_err(Refusal::Read)?;
    let mut bytes = Vec::new();
    let most = COMPONENT_LEN.saturating_add(1);
    file.take(most)
        .read_to_end(&mut bytes)
        .map_err(Refusal::Read)?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > COMPONENT_LEN {
        return Err(Refusal::TooLarge);
    }
    Ok(bytes)
}

/// What a component takes and gives, if it takes nothing that it may not have.
fn examine(engine: &Engine, component: &ComponentType) -> Result<Surface, Refusal> {
    let mut surface = Surface::default();
    for (name, item) in component.imports(&engine.wasmtime) {
        known_version(name)?;
        let plain = matches!(&item.ty, ComponentItem::ComponentInstance(instance)
            if instance.exports(&engine.wasmtime).all(|(_, it)| matches!(it.ty, ComponentItem::Type(_))));
        if !plain && !name.starts_with("wharf:policy/log@") {
            return Err(Refusal::Import { name: short(name) });
        }
        surface.imports.push(short(name));
    }
    for (name, _) in component.exports(&engine.wasmtime) {
        known_version(name)?;
        surface.exports.push(short(name));
    }
    Ok(surface)
}

/// Refuses another version of the contract; says nothing of what is not part of it.
fn known_version(name: &str) -> Result<(), Refusal> {
    let Some(rest) = name.strip_prefix(PACKAGE) else {
        return Ok(());
    };
    let theirs = rest.split_once('@').map_or("without a version", |it| it.1);
    let same = Version::parse(theirs)
        .is_ok_and(|it| (it.major, it.minor) == (VERSION.major, VERSION.minor));
    same.then_some(()).ok_or_else(|| Refusal::Version {
        theirs: short(theirs),
    })
}

/// A name or version as something that can stand in a table.
fn word(said: &str) -> String {
    let plain = |c: char| if c.is_ascii_graphic() { c } else { '?' };
    let word: String = said.chars().map(plain).take(64).collect();
    if word.is_empty() {
        "?".to_owned()
    } else {
        word
    }
}

/// SHA-256, in hexadecimal: what policies, and people, tell versions apart by.
#[must_use]
pub fn digest(bytes: &[u8]) -> String {
    let hex = |mut text: String, byte: &u8| {
        use std::fmt::Write;
        // Writing to a string never fails.
        let _ = write!(text, "{byte:02x}");
        text
    };
    Sha256::digest(bytes).iter().fold(String::new(), hex)
}
