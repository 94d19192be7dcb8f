//! Guests made of a snapshot.

use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use super::file::{self, Opened};
use super::state::{Cpu, State};
use super::{RestoreError, SnapshotError, Unusable};
use crate::boot::{self, BootConfig};
use crate::device::{Backend, Devices};
use crate::image::Image;
use crate::layout::Layout;
use crate::machine::{Hypervisor, Machine, Standing, assemble, check_backends, system_page};
use crate::memory::{GuestMemory, Vm};
use crate::space::AddressSpace;
use crate::vcpu::{Start, Vcpu};
use crate::{Error, time};

/// A snapshot that was found good, of which guests can be made.
#[derive(Debug)]
pub struct Snapshot {
    file: Arc<File>,
    memory_at: u64,
    memory_len: u64,
    /// The pages of which it has something.
    pages: Arc<[Range<u64>]>,
    state: State,
    image: Arc<Image>,
    layout: Arc<Layout>,
}

/// A guest made of a snapshot, but for what sets it apart from others: its generation,
/// its random seed, its clock and its devices. Who keeps some has a guest at once.
#[derive(Debug)]
pub struct Prepared {
    // Declared, and so dropped, before its VM.
    vcpu: Vcpu,
    vm: Vm,
    snapshot: Arc<Snapshot>,
    cpu: Arc<Cpu>,
}

/// What a clone gets besides its snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RestoreConfig {
    /// Which life of its task this is. Another than the snapshot's: by this a guest
    /// knows that it is another, and has to draw other random numbers.
    pub generation: u64,
}

impl Snapshot {
    /// Reads a file once and checks everything, so that [`Machine::restore`] need not.
    ///
    /// # Errors
    ///
    /// [`SnapshotError`].
    pub fn open(hypervisor: &Hypervisor, path: &Path) -> Result<Self, SnapshotError> {
        let opened = file::open(path).and_then(|opened| Self::check(hypervisor, opened));
        opened.map_err(|why| SnapshotError {
            path: path.to_owned(),
            why,
        })
    }

    fn check(hypervisor: &Hypervisor, opened: Opened) -> Result<Self, Unusable> {
        let Opened {
            file,
            state,
            image,
            memory_at,
            memory_len,
            pages,
        } = opened;
        let ours = hypervisor.cpu().as_ref();
        if state.cpu != *ours {
            return Err(Unusable::Cpu {
                theirs: Box::new(state.cpu),
                ours: Box::new(ours.clone()),
            });
        }
        let layout = Arc::new(state.check(&image, memory_len)?);
        Ok(Self {
            file: Arc::new(file),
            memory_at,
            memory_len,
            pages: pages.into(),
            state,
            image: Arc::new(image),
            layout,
        })
    }

    /// The image that the guest runs.
    #[must_use]
    pub const fn image(&self) -> &Arc<Image> {
        &self.image
    }

    /// Which life of its task the guest was.
    #[must_use]
    pub const fn generation(&self) -> u64 {
        self.state.origin.boot.generation
    }

    /// What the guest was booted with.
    #[must_use]
    pub const fn boot(&self) -> &BootConfig {
        &self.state.origin.boot
    }
}

impl Machine {
    /// Makes a guest that goes on where the snapshot's stood, its call answered.
    /// `backends` stand behind the devices that the image's manifest declares, in that
    /// order. Its connections are reset; its clock goes on.
    ///
    /// # Errors
    ///
    /// [`RestoreError`]. Nothing stays behind.
    pub fn restore(
        hypervisor: &Hypervisor,
        snapshot: &Arc<Snapshot>,
        config: RestoreConfig,
        backends: Vec<Backend>,
    ) -> Result<Self, RestoreError> {
        Prepared::new(hypervisor, snapshot)?.start(config, backends)
    }
}

impl Prepared {
    /// Makes VM and vCPU over the snapshot's memory.
    ///
    /// # Errors
    ///
    /// When KVM or the host's memory is at its limits. Nothing stays behind.
    pub fn new(hypervisor: &Hypervisor, snapshot: &Arc<Snapshot>) -> Result<Self, Error> {
        let Snapshot { state, layout, .. } = snapshot.as_ref();
        let (len, at) = (snapshot.memory_len, snapshot.memory_at);
        let memory = GuestMemory::on_file(len, &snapshot.file, at, &snapshot.pages)?;
        let system = system_page(layout, snapshot.image.manifest().contract);
        let start = Start {
            registers: state.registers.kvm(),
            is_supervisor: false,
        };
        let (vm, vcpu) = assemble(hypervisor, layout, memory, &system, &start)?;
        vcpu.set_fpu(&state.fpu)?;
        boot::populate_host(vm.memory(), layout, 0);
        boot::fill_system(vm.memory(), layout, &system)?;
        Ok(Self {
            vcpu,
            vm,
            snapshot: Arc::clone(snapshot),
            cpu: Arc::clone(hypervisor.cpu()),
        })
    }

    /// What it is made of.
    #[must_use]
    pub const fn snapshot(&self) -> &Arc<Snapshot> {
        &self.snapshot
    }

    /// Gives it what it lacks, as [`Machine::restore`] does.
    ///
    /// # Errors
    ///
    /// [`RestoreError`]. Nothing stays behind.
    pub fn start(
        self,
        config: RestoreConfig,
        backends: Vec<Backend>,
    ) -> Result<Machine, RestoreError> {
        let Self {
            vcpu,
            vm,
            snapshot,
            cpu,
        } = self;
        let Snapshot {
            state,
            image,
            layout,
            ..
        } = snapshot.as_ref();
        check_backends(image, &backends)?;
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).map_err(Error::Entropy)?;
        let mut origin = state.origin.clone();
        origin.boot.generation = config.generation;
        let clock =
            time::clock_going_on(vcpu.tsc_khz()?, state.monotonic_ns).ok_or(RestoreError::Clock)?;
        boot::fill(vm.memory(), layout, image, &origin, clock, seed)?;
        let pages = layout.device_pages().map(|(_, gpa)| gpa);
        let mut devices = Devices::offer(backends, vm.memory(), pages)?;
        let space = AddressSpace::new(&layout.mappings);
        devices
            .go_on(&state.devices, vm.memory(), &space)
            .map_err(|(device, fault)| RestoreError::Device { device, fault })?;
        Ok(Machine {
            vcpu,
            vm,
            layout: Arc::clone(layout),
            space,
            clock,
            devices,
            cpu,
            origin,
            standing: Standing::Interrupted,
            hvt: None,
            copy: None,
        })
    }
}
