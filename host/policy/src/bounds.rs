//! What a component may hold, found out before a compiler sees it.
//!
//! wasmtime's parser calls itself for a type inside a type, and its compiler takes time
//! and memory that grow faster than what it is given: a few hundred bytes could end the
//! host, a few hundred thousand could stall it. So every plugin is counted first, in one
//! pass whose time is that of reading and whose depth is bounded.
//!
//! The largest plugins that anybody makes hold an interpreter and a script. One of
//! Python's, of 18 MB, has 41 parts, 13,488 functions of up to 426,843 bytes, blocks 781
//! deep, loops 6 deep and 271 locals, links 10,682 items, and is work for 8 million.

use wasmparser::{
    ComponentInstance, ComponentType, ComponentTypeSectionReader, FunctionBody, Instance,
    InstanceTypeDeclaration, Operator, Parser, Payload, TypeRef, TypeSectionReader,
};

use crate::engine::TABLE_LEN;

/// Core modules and components in a component, together.
const PARTS: u64 = 200;

/// Components in components.
const COMPONENT_DEPTH: usize = 8;

/// Types in types of a component.
const TYPE_DEPTH: usize = 100;

/// Whatever is linked, with what is instantiated several times counted as often:
/// the compiler makes each its own.
const LINKS: u64 = 100_000;

/// Functions of all modules together.
const FUNCTIONS: u64 = 100_000;

/// Tables of all modules together. No instance gets more.
const TABLES: u64 = 48;

/// Memories of all modules together.
const MEMORIES: u64 = 16;

/// Parameters or results of a core function. The component model passes 16 at most.
const ARITY: usize = 100;

/// Bytes of one function.
const FUNCTION_LEN: usize = 1 << 20;

/// Locals of one function.
const LOCALS: u64 = 10_000;

/// Blocks in blocks. A `switch` of a C compiler's is as deep as it has cases.
const BLOCK_DEPTH: usize = 2000;

/// Loops in loops.
const LOOP_DEPTH: usize = 100;

/// What the compiler may have to remember of a function: a value for every local in
/// every block, and one for every parameter of a block at every branch to it.
const WORK: u64 = 8 << 20;

/// The same of all functions together.
const TOTAL_WORK: u64 = 64 << 20;

/// A component that is not given to the compiler.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Excess {
    /// There is too much of something.
    #[error("it has more than {most} {what}, which no policy needs")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// The bound.
        most: u64,
    },
    /// It wants to be given components, which plugins never are.
    #[error("it has the type of a component, which plugins are not given")]
    ComponentType,
    /// It cannot be read.
    #[error("it is no valid component: {0}")]
    Malformed(String),
}

/// Says whether a component may be given to the compiler.
pub(crate) fn check(component: &[u8]) -> Result<(), Excess> {
    let mut count = Count::default();
    for payload in Parser::new(0).parse_all(component) {
        count.take(payload.map_err(malformed)?, component)?;
    }
    Ok(())
}

#[derive(Default)]
struct Count {
    parts: u64,
    functions: u64,
    tables: u64,
    memories: u64,
    work: u64,
    /// Parameters and results of the module's widest function.
    arity: u64,
    /// What each of the modules and components that are open links.
    open: Vec<u64>,
    /// The most that any component links which is closed. Only closed ones can be
    /// instantiated: none is imported, as there are no types of components.
    heaviest: u64,
}

impl Count {
    fn take(&mut self, payload: Payload<'_>, component: &[u8]) -> Result<(), Excess> {
        match payload {
            Payload::Version { .. } => self.open.push(1),
            Payload::End(_) => {
                let links = self.open.pop().unwrap_or(0);
                self.heaviest = self.heaviest.max(links);
            }
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => {
                add(
                    &mut self.parts,
                    1,
                    PARTS,
                    "modules and components inside it",
                )?;
                at_most(
                    self.open.len(),
                    COMPONENT_DEPTH,
                    "components inside each other",
                )?;
                self.arity = 0;
            }
            Payload::ComponentTypeSection(types) => {
                let range = types.range();
                component_types(types, component.get(range).unwrap_or_default())?;
            }
            Payload::ComponentInstanceSection(instances) => {
                for instance in instances {
                    let links = match instance.map_err(malformed)? {
                        ComponentInstance::Instantiate { args, .. } => {
                            self.heaviest.saturating_add(len(args.len()))
                        }
                        ComponentInstance::FromExports(exports) => len(exports.len()),
                    };
                    self.link(links.saturating_add(1))?;
                }
            }
            Payload::InstanceSection(instances) => {
                for instance in instances {
                    let links = match instance.map_err(malformed)? {
                        Instance::Instantiate { args, .. } => args.len(),
                        Instance::FromExports(exports) => exports.len(),
                    };
                    self.link(len(links).saturating_add(1))?;
                }
            }
            Payload::ComponentAliasSection(it) => self.link(it.count().into())?,
            Payload::ComponentCanonicalSection(it) => self.link(it.count().into())?,
            Payload::ComponentImportSection(it) => self.link(it.count().into())?,
            Payload::ComponentExportSection(it) => self.link(it.count().into())?,
            Payload::CoreTypeSection(it) => self.link(it.count().into())?,
            Payload::TypeSection(types) => self.function_types(types)?,
            Payload::ImportSection(imports) => {
                for import in imports.into_imports() {
                    let import = import.map_err(malformed)?;
                    self.link(1)?;
                    if let TypeRef::Table(table) = import.ty {
                        table_len(table.initial)?;
                    }
                }
            }
            Payload::ExportSection(it) => self.link(it.count().into())?,
            Payload::FunctionSection(it) => {
                add(
                    &mut self.functions,
                    it.count().into(),
                    FUNCTIONS,
                    "functions",
                )?;
            }
            Payload::TableSection(tables) => {
                add(&mut self.tables, tables.count().into(), TABLES, "tables")?;
                for table in tables {
                    table_len(table.map_err(malformed)?.ty.initial)?;
                }
            }
            Payload::MemorySection(it) => {
                add(&mut self.memories, it.count().into(), MEMORIES, "memories")?;
            }
            Payload::CodeSectionEntry(body) => {
                let work = function(&body, self.arity)?;
                add(
                    &mut self.work,
                    work,
                    TOTAL_WORK,
                    "values at the blocks of its functions",
                )?;
            }
            // Their cost is that of their bytes, which are counted already.
            _ => {}
        }
        Ok(())
    }

    /// Adds to what the innermost module or component links.
    fn link(&mut self, links: u64) -> Result<(), Excess> {
        match self.open.last_mut() {
            Some(open) => add(open, links, LINKS, "imports, exports and instances"),
            None => Ok(()),
        }
    }

    fn function_types(&mut self, types: TypeSectionReader<'_>) -> Result<(), Excess> {
        for group in types {
            for ty in group.map_err(malformed)?.into_types() {
                if let wasmparser::CompositeInnerType::Func(it) = &ty.composite_type.inner {
                    let arity = it.params().len().max(it.results().len());
                    at_most(arity, ARITY, "parameters or results of a function")?;
                    self.arity = self.arity.max(len(arity));
                }
            }
        }
        Ok(())
    }
}

/// Looks into types. The parser calls itself for each that is inside another, so first
/// their depth is bounded by what is at hand without parsing.
fn component_types(types: ComponentTypeSectionReader<'_>, bytes: &[u8]) -> Result<(), Excess> {
    // A declaration of a type (1) that is one of a component (0x41) or of an instance
    // (0x42) begins every level but the first. These bytes may mean something else, too,
    // but hardly so often.
    let level = |pair: &&[u8]| matches!(pair, [1, 0x41 | 0x42]);
    let depth = bytes.windows(2).filter(level).count();
    at_most(depth, TYPE_DEPTH, "types inside types")?;
    for ty in types {
        no_component(&ty.map_err(malformed)?)?;
    }
    Ok(())
}

/// Calls itself as deep as [`TYPE_DEPTH`].
fn no_component(ty: &ComponentType<'_>) -> Result<(), Excess> {
    match ty {
        ComponentType::Component(_) => Err(Excess::ComponentType),
        ComponentType::Instance(declarations) => {
            declarations
                .iter()
                .try_for_each(|declaration| match declaration {
                    InstanceTypeDeclaration::Type(inner) => no_component(inner),
                    _ => Ok(()),
                })
        }
        _ => Ok(()),
    }
}

/// What the compiler may have to remember of a function, if it may be given to it.
fn function(body: &FunctionBody<'_>, arity: u64) -> Result<u64, Excess> {
    at_most(
        body.range().len(),
        FUNCTION_LEN,
        "bytes of code in a function",
    )?;
    let mut locals = 0;
    for group in body.get_locals_reader().map_err(malformed)? {
        let (count, _) = group.map_err(malformed)?;
        add(&mut locals, count.into(), LOCALS, "locals in a function")?;
    }
    let at_block = locals.saturating_add(arity).saturating_add(1);
    let at_branch = arity.saturating_add(1);
    let mut work = 0_u64;
    let mut blocks = Vec::new();
    let mut loops = 0_usize;
    for operator in body.get_operators_reader().map_err(malformed)? {
        let more = match operator.map_err(malformed)? {
            Operator::Loop { .. } => {
                blocks.push(true);
                loops = loops.saturating_add(1);
                at_block
            }
            Operator::Block { .. }
            | Operator::If { .. }
            | Operator::Try { .. }
            | Operator::TryTable { .. } => {
                blocks.push(false);
                at_block
            }
            Operator::End => {
                if blocks.pop() == Some(true) {
                    loops = loops.saturating_sub(1);
                }
                0
            }
            Operator::Else => at_block,
            Operator::Br { .. } | Operator::BrIf { .. } => at_branch,
            Operator::BrTable { targets } => u64::from(targets.len())
                .saturating_add(1)
                .saturating_mul(at_branch),
            _ => 0,
        };
        at_most(blocks.len(), BLOCK_DEPTH, "blocks inside each other")?;
        at_most(loops, LOOP_DEPTH, "loops inside each other")?;
        let what = "values at the blocks of a function";
        add(&mut work, more, WORK, what)?;
    }
    Ok(work)
}

fn table_len(initial: u64) -> Result<(), Excess> {
    let most = len(TABLE_LEN);
    let what = "elements in a table";
    (initial <= most)
        .then_some(())
        .ok_or(Excess::TooMany { what, most })
}

fn add(total: &mut u64, more: u64, most: u64, what: &'static str) -> Result<(), Excess> {
    *total = total.saturating_add(more);
    (*total <= most)
        .then_some(())
        .ok_or(Excess::TooMany { what, most })
}

fn at_most(count: usize, most: usize, what: &'static str) -> Result<(), Excess> {
    add(&mut 0, len(count), len(most), what)
}

/// No count here is as large as that of an address space.
fn len(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

#[expect(clippy::needless_pass_by_value, reason = "it is for map_err")]
fn malformed(error: wasmparser::BinaryReaderError) -> Excess {
    Excess::Malformed(wharf_model::policy::check::short(&error.to_string()))
}
