//! A guest that goes on in another process of the same machine, as it stands.
//!
//! ```text
//!   Machine ──announce──▶ Announced ──────────▶ Reserved     while the guest runs
//!      │    ──carry─────▶ Carried ──────────────▶ go_on ──▶ Machine
//!      │                                       ▒ it stands still
//!      │                                                      │
//!      ├── resume: nobody took it, it goes on here            └── resume: it does
//!      └── let_go: another process has it
//! ```
//!
//! Its memory is a file in memory that both processes map, so that page tables, boot page
//! and rings are where they were, and nothing is copied. What has other memory (see
//! `Backing`) is copied while it stands still. Registers, queues, and what is known of
//! connections are described; files and sockets go along as descriptors ([`Luggage`]).
//!
//! Unlike a [snapshot](crate::snapshot), nothing is another guest's: no new generation, no
//! seed, no connection that is cut off. Whoever describes is trusted as much as this
//! process, which it was; but it may be of another version, so that what does not add up
//! is refused. And what the guest has written is not trusted any more than before: rings
//! are checked again.

mod luggage;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use wharf_abi::Clock;

pub use luggage::{BadLuggage, BytesRef, FileRef, Lendable, Luggage};

pub use crate::device::CarriedBackend;

use crate::Error;
use crate::boot;
use crate::device::{Backend, CarriedDevices, Devices};
use crate::hvt::{CarriedHvt, Hvt};
use crate::image::{Contract, Image};
use crate::layout::{Layout, LayoutError};
use crate::machine::{
    Hypervisor, Machine, Origin, Standing, assemble, check_backends, system_page,
};
use crate::memory::{Backing, Gpa, GuestMemory, PAGE, Touched, Vm, memory_file, u64_of};
use crate::snapshot::{Cpu, Registers};
use crate::space::AddressSpace;
use crate::vcpu::{FPU_WORDS, Start, Vcpu, held_rflags};

/// Why a guest does not go over.
#[derive(Debug, thiserror::Error)]
pub enum CarryError {
    /// The host's.
    #[error(transparent)]
    Machine(#[from] Error),
    /// It has ended.
    #[error("it has ended")]
    Over,
    /// A file or socket of its cannot be passed on.
    #[error("what stands behind one of its devices: {0}")]
    Backend(#[source] std::io::Error),
    /// The description speaks of what has not come along.
    #[error(transparent)]
    Luggage(#[from] BadLuggage),
    /// The description contradicts itself, the image or what the guest has written.
    #[error("it does not add up: {0}")]
    Malformed(&'static str),
    /// Its image does not go where it is.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The other process shows another CPU to guests.
    #[error("its CPU is {theirs}, and this process has {ours} for it")]
    Cpu {
        /// What it knows.
        theirs: Box<Cpu>,
        /// What there is.
        ours: Box<Cpu>,
    },
}

/// What another process can make ready for a guest that still runs.
#[derive(Debug, Serialize, Deserialize)]
pub struct Announced {
    cpu: Cpu,
    origin: Origin,
    plan: Plan,
    memory: CarriedMemory,
}

/// Where everything stands in the guest, which follows from its image and origin, unless
/// another version plans otherwise.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Plan {
    memory: u64,
    bias: u64,
    /// Address, length and guest-physical address of each mapping.
    mappings: Vec<(u64, u64, u64)>,
}

/// Where its memory is.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum CarriedMemory {
    /// In a file in memory, where it is by then, at the latest.
    Shared(FileRef),
    /// In a file, but for the pages that come with it.
    OnFile {
        file: FileRef,
        at: u64,
        below: Vec<Range<u64>>,
    },
}

/// A guest that stands still.
#[derive(Debug, Serialize, Deserialize)]
pub struct Carried {
    registers: Registers,
    /// As it is: a guest of another contract may have more of it than others.
    rflags: u64,
    fpu: Vec<u32>,
    in_call: bool,
    clock: CarriedClock,
    /// Of memory that is not shared: the numbers of pages, 8 bytes each, and a file with
    /// the pages.
    pages: Option<(BytesRef, FileRef)>,
    devices: CarriedDevices,
    hvt: Option<CarriedHvt>,
}

/// See [`Clock`].
#[derive(Debug, Serialize, Deserialize)]
struct CarriedClock {
    tsc_base: u64,
    ns_per_tick_q32: u64,
    wall_base_ns: u64,
}

/// A machine for a guest that is still to come.
#[derive(Debug)]
pub struct Reserved {
    // Declared, and so dropped, before its VM.
    vcpu: Vcpu,
    vm: Vm,
    image: Arc<Image>,
    layout: Layout,
    cpu: Arc<Cpu>,
    origin: Origin,
}

impl Carried {
    /// What each of its back ends said of itself, in the order of the manifest: whoever
    /// goes on with it makes them again.
    #[must_use]
    pub fn backends(&self) -> &[CarriedBackend] {
        match &self.hvt {
            Some(hvt) => hvt.backends(),
            None => self.devices.backends(),
        }
    }
}

impl Machine {
    /// Describes what another process can make ready, while the guest goes on.
    ///
    /// # Errors
    ///
    /// When there are no descriptors or memory left.
    pub fn announce(&mut self, luggage: &mut Luggage) -> Result<Announced, CarryError> {
        let clone = |file: &File| -> Result<_, CarryError> {
            Ok(file.try_clone().map_err(CarryError::Backend)?.into())
        };
        let memory = match self.vm.memory().backing() {
            Backing::Shared(file) => CarriedMemory::Shared(luggage.put_file(clone(file)?)),
            Backing::Anonymous => {
                let file = memory_file(self.vm.memory().len())?;
                let passed = clone(&file)?;
                // It is filled when the guest stands still.
                self.copy = Some(file);
                CarriedMemory::Shared(luggage.put_file(passed))
            }
            Backing::OnFile { file, at, below } => CarriedMemory::OnFile {
                file: luggage.put_file(clone(file)?),
                at: *at,
                below: below.to_vec(),
            },
        };
        Ok(Announced {
            cpu: self.cpu.as_ref().clone(),
            origin: self.origin.clone(),
            plan: Plan::of(&self.layout),
            memory,
        })
    }

    /// Describes the guest as it stands, once it was [announced](Machine::announce). It
    /// must not be entered or served until it is [resumed](Machine::resume) or let go,
    /// whatever comes of this.
    ///
    /// # Errors
    ///
    /// [`CarryError`].
    pub fn carry(&mut self, luggage: &mut Luggage) -> Result<Carried, CarryError> {
        let in_call = match self.standing {
            Standing::Over => return Err(CarryError::Over),
            Standing::InCall => true,
            Standing::Interrupted => false,
        };
        self.vcpu.retire()?;
        let registers = self.vcpu.registers();
        let sregs = self.vcpu.system_registers();
        let devices = self.devices.carry(luggage).map_err(CarryError::Backend)?;
        let hvt = match &mut self.hvt {
            None => None,
            Some(hvt) => {
                let bases = (sregs.fs.base, sregs.gs.base);
                Some(hvt.carry(bases, luggage).map_err(CarryError::Backend)?)
            }
        };
        Ok(Carried {
            registers: Registers::new(&registers),
            rflags: registers.rflags,
            fpu: self.vcpu.fpu()?,
            in_call,
            clock: CarriedClock::of(self.clock),
            pages: self.carry_pages(luggage)?,
            devices,
            hvt,
        })
    }

    /// Copies what is in no file that the other process has.
    fn carry_pages(
        &self,
        luggage: &mut Luggage,
    ) -> Result<Option<(BytesRef, FileRef)>, CarryError> {
        let memory = self.vm.memory();
        match memory.backing() {
            Backing::Shared(_) => Ok(None),
            Backing::Anonymous => {
                let file = self.copy.as_ref();
                let file = file.ok_or(Error::Defect("a guest that was not announced"))?;
                let mut page = [0; PAGE_LEN];
                for number in memory.used_pages() {
                    let at = number.saturating_mul(PAGE);
                    memory.read(Gpa(at), &mut page)?;
                    file.write_all_at(&page, at).map_err(CarryError::Backend)?;
                }
                Ok(None)
            }
            Backing::OnFile { .. } => {
                let numbers = memory.touched_pages(Touched::Privately);
                let file = memory_file(u64_of(numbers.len()).saturating_mul(PAGE))?;
                let (mut named, mut page) = (Vec::new(), [0; PAGE_LEN]);
                for (number, at) in numbers.iter().zip(places()) {
                    named.extend(number.to_le_bytes());
                    memory.read(Gpa(number.saturating_mul(PAGE)), &mut page)?;
                    file.write_all_at(&page, at).map_err(CarryError::Backend)?;
                }
                let named = luggage.put_bytes(&named);
                Ok(Some((named, luggage.put_file(file.into()))))
            }
        }
    }

    /// Has it go on in this process: nobody took it, or this is where it has come.
    pub fn resume(&mut self) {
        self.copy = None;
        self.devices.resume();
    }

    /// Another process has it. Everything behind its devices is let go without a word to
    /// anybody; what is left is to be dropped when there is time.
    pub fn let_go(&mut self) {
        self.standing = Standing::Over;
        self.devices.let_go();
        if let Some(hvt) = &mut self.hvt {
            hvt.let_go();
        }
    }
}

impl Reserved {
    /// Makes VM and vCPU over the memory of a guest that still runs elsewhere.
    ///
    /// # Errors
    ///
    /// [`CarryError`]. Nothing stays behind.
    pub fn new(
        hypervisor: &Hypervisor,
        image: &Arc<Image>,
        announced: &Announced,
        luggage: &mut Luggage,
    ) -> Result<Self, CarryError> {
        let Announced {
            cpu,
            origin,
            plan,
            memory,
        } = announced;
        let ours = hypervisor.cpu();
        if cpu != ours.as_ref() {
            return Err(CarryError::Cpu {
                theirs: Box::new(cpu.clone()),
                ours: Box::new(ours.as_ref().clone()),
            });
        }
        let layout = origin.plan(image)?;
        if Plan::of(&layout) != *plan {
            return Err(CarryError::Malformed("its memory is laid out otherwise"));
        }
        let len = layout.memory;
        let memory = match memory {
            CarriedMemory::Shared(file) => {
                let file = luggage.take_file(*file)?;
                GuestMemory::shared(len, layout.huge.clone(), file.into())?
            }
            CarriedMemory::OnFile { file, at, below } => {
                let file = Arc::new(File::from(luggage.take_file(*file)?));
                // Accesses behind the end would be the end of this process.
                let found = file.metadata().map_err(CarryError::Backend)?.len();
                if at.checked_add(len).is_none_or(|end| end > found) {
                    return Err(CarryError::Malformed("its memory's file is too short"));
                }
                if below.iter().any(|it| it.start > it.end || it.end > len) {
                    return Err(CarryError::Malformed("pages outside of its memory"));
                }
                GuestMemory::on_file(len, &file, *at, &below.clone().into())?
            }
        };
        let contract = image.manifest().contract;
        let system = system_page(&layout, contract);
        let start = Start {
            registers: kvm_bindings::kvm_regs {
                // Anything that KVM takes.
                rflags: held_rflags(0),
                ..Default::default()
            },
            is_supervisor: contract == Contract::Hvt,
        };
        let (vm, vcpu) = assemble(hypervisor, &layout, memory, &system, &start)?;
        boot::populate_host(vm.memory(), &layout, 0);
        Ok(Self {
            vcpu,
            vm,
            image: Arc::clone(image),
            layout,
            cpu: Arc::clone(ours),
            origin: origin.clone(),
        })
    }

    /// Goes on with the guest, with `backends` made of what the description says of each.
    ///
    /// # Errors
    ///
    /// [`CarryError`]. Nothing stays behind, and nobody is told of anything.
    pub fn go_on(
        self,
        carried: &Carried,
        luggage: &mut Luggage,
        backends: Vec<Backend>,
    ) -> Result<Machine, CarryError> {
        let Self {
            mut vcpu,
            vm,
            image,
            layout,
            cpu,
            origin,
        } = self;
        check_backends(&image, &backends)?;
        if carried.fpu.len() != FPU_WORDS {
            return Err(CarryError::Malformed("its floating-point state is none"));
        }
        let mut registers = carried.registers.kvm();
        if carried.hvt.is_some() {
            registers.rflags = held_rflags(carried.rflags);
        }
        let bases = carried.hvt.as_ref().map(CarriedHvt::bases);
        vcpu.continue_at(&registers, bases)?;
        vcpu.set_fpu(&carried.fpu)?;
        if let Some((numbers, pages)) = carried.pages {
            let pages = File::from(luggage.take_file(pages)?);
            let numbers = luggage.bytes(numbers)?.as_chunks().0.iter().copied();
            let mut page = [0; PAGE_LEN];
            for (number, at) in numbers.map(u64::from_le_bytes).zip(places()) {
                let read = pages.read_exact_at(&mut page, at);
                read.map_err(|_| CarryError::Malformed("its pages are not all there"))?;
                vm.memory().write(Gpa(number.saturating_mul(PAGE)), &page)?;
            }
        }
        let space = AddressSpace::new(&layout.mappings);
        let (devices, hvt) = match &carried.hvt {
            Some(it) => (
                Devices::default(),
                Some(Box::new(Hvt::go_on(it, backends, luggage)?)),
            ),
            None => {
                let pages = layout.device_pages().map(|(_, gpa)| gpa);
                let (devices, memory) = (&carried.devices, vm.memory());
                let devices = Devices::carry_on(devices, backends, memory, &space, pages, luggage)?;
                (devices, None)
            }
        };
        if hvt.is_some() != (image.manifest().contract == Contract::Hvt) {
            return Err(CarryError::Malformed("its image is of another contract"));
        }
        Ok(Machine {
            vcpu,
            vm,
            layout: Arc::new(layout),
            space,
            clock: carried.clock.clock(),
            devices,
            cpu,
            origin,
            standing: if carried.in_call {
                Standing::InCall
            } else {
                Standing::Interrupted
            },
            hvt,
            copy: None,
        })
    }
}

impl Plan {
    fn of(layout: &Layout) -> Self {
        let mappings = layout.mappings.iter();
        Self {
            memory: layout.memory,
            bias: layout.bias,
            mappings: mappings.map(|it| (it.addr, it.len, it.gpa.0)).collect(),
        }
    }
}

impl CarriedClock {
    const fn of(clock: Clock) -> Self {
        Self {
            tsc_base: clock.tsc_base,
            ns_per_tick_q32: clock.ns_per_tick_q32,
            wall_base_ns: clock.wall_base_ns,
        }
    }

    const fn clock(&self) -> Clock {
        Clock {
            tsc_base: self.tsc_base,
            ns_per_tick_q32: self.ns_per_tick_q32,
            wall_base_ns: self.wall_base_ns,
        }
    }
}

/// Where pages stand in a file of nothing but pages.
fn places() -> impl Iterator<Item = u64> {
    (0..).map(|number: u64| number.saturating_mul(PAGE))
}

/// Bytes of a page, as a length in the host.
const PAGE_LEN: usize = 4096;
const _: () = assert!(PAGE == 4096);
