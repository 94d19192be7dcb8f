//! A VM with one vCPU and the guest in it.

use std::fs::File;
use std::mem::offset_of;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_regs};
use kvm_ioctls::{Cap, Kvm};
use serde::{Deserialize, Serialize};
use wharf_abi::hypercall::CONSOLE_WRITE_MAX;
use wharf_abi::upgrade::{BLOCK_MAX, STATE_MAX};
use wharf_abi::{Answer, BootPage, Clock, Hypercall, Span};
use zerocopy::IntoBytes;

use crate::boot::{self, BootConfig};
use crate::descriptors::SystemPage;
use crate::device::{Backend, Devices, Disk, Moved, Served, UserMemory};
use crate::exit::{Call, Exit, RawExit};
use crate::fault::{Cause, Exception, Fault};
use crate::hvt::{self, Context, Handled, Hvt};
use crate::image::{Contract, Image};
use crate::layout::{Layout, LayoutError};
use crate::memory::{Gpa, GuestMemory, Vm, u64_of};
use crate::snapshot::Cpu;
use crate::space::{AddressSpace, UserSlice};
use crate::upgrade::{BadLegacy, Legacy, Resting};
use crate::vcpu::{self, SYNC_REGS_NEEDED, Start, Vcpu};
use crate::{Error, cpuid, time};

/// `/dev/kvm`, opened, and what every guest needs from it.
#[derive(Debug)]
pub struct Hypervisor {
    kvm: Kvm,
    cpuid: CpuId,
    cpu: Arc<Cpu>,
    shares_memory: bool,
}

impl Hypervisor {
    /// Opens `/dev/kvm` and asks once what CPU it can show to guests.
    ///
    /// # Errors
    ///
    /// When it does not open, speaks another API version than 12, or lacks a
    /// capability that guests need.
    pub fn open() -> Result<Self, Error> {
        let kvm = Kvm::new().map_err(Error::Open)?;
        if kvm.get_api_version() != 12 {
            return Err(Error::Missing("API version 12"));
        }
        if kvm.check_extension_int(Cap::SyncRegs) & SYNC_REGS_NEEDED == 0 {
            return Err(Error::Missing("KVM_CAP_SYNC_REGS"));
        }
        let mut cpuid = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(Error::kvm("tell the CPUID it supports"))?;
        cpuid::mask(&mut cpuid);
        let cpu = Arc::new(Cpu::of(&cpuid));
        Ok(Self {
            kvm,
            cpuid,
            cpu,
            shares_memory: false,
        })
    }

    /// The same, whose guests have memory that another process can go on with as it is
    /// ([`handover`](crate::handover)).
    #[must_use]
    pub fn with_shared_memory(self) -> Self {
        Self {
            shares_memory: true,
            ..self
        }
    }

    /// Which CPU guests see.
    pub(crate) const fn cpu(&self) -> &Arc<Cpu> {
        &self.cpu
    }
}

/// One guest, ready to be entered.
#[derive(Debug)]
pub struct Machine {
    // Declared, and so dropped, before its VM.
    pub(crate) vcpu: Vcpu,
    pub(crate) vm: Vm,
    pub(crate) layout: Arc<Layout>,
    pub(crate) space: AddressSpace,
    pub(crate) clock: Clock,
    pub(crate) devices: Devices,
    pub(crate) cpu: Arc<Cpu>,
    /// What it was booted with, from which the layout can be planned again.
    pub(crate) origin: Origin,
    pub(crate) standing: Standing,
    /// What else there is to a guest of Solo5's, which has no call and no device of the
    /// other kind.
    pub(crate) hvt: Option<Box<Hvt>>,
    /// Where its memory is to be copied to, when it has been announced to another process
    /// that cannot share it.
    pub(crate) copy: Option<File>,
}

/// What, with the image, decides where everything stands in a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Origin {
    pub(crate) boot: BootConfig,
    /// Decides a relocatable image's base.
    pub(crate) random: u64,
    /// Bytes of state that it was given.
    pub(crate) inherited: u64,
}

/// How a guest was left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It waits for an answer to a call.
    InCall,
    /// It can be entered as it is.
    Interrupted,
    /// It has ended, or broke a rule.
    Over,
}

impl Origin {
    /// Plans the memory of `image`.
    ///
    /// # Errors
    ///
    /// As [`Layout::plan`].
    pub(crate) fn plan(&self, image: &Image) -> Result<Layout, LayoutError> {
        let args_len = self.boot.args.len();
        Layout::plan_heir(image, self.memory(), args_len, self.room(), self.random)
    }

    /// Bytes of memory in all: room for what is inherited is not taken from what the
    /// guest was promised.
    pub(crate) const fn memory(&self) -> u64 {
        self.boot.memory.saturating_add(self.room())
    }

    const fn room(&self) -> u64 {
        if self.boot.is_heir { STATE_MAX } else { 0 }
    }
}

impl Machine {
    /// Builds a VM with `image` in it, up to its first instruction. `backends` stand
    /// behind the devices that its manifest declares, in that order.
    ///
    /// # Errors
    ///
    /// When the image does not fit the memory, or KVM or the host's memory is at
    /// its limits. Nothing stays behind. Back ends that do not fit the manifest are
    /// [`Error::Defect`].
    pub fn boot(
        hypervisor: &Hypervisor,
        image: &Image,
        config: &BootConfig,
        backends: Vec<Backend>,
    ) -> Result<Self, Error> {
        check_backends(image, &backends)?;
        let is_hvt = image.manifest().contract == Contract::Hvt;
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).map_err(Error::Entropy)?;
        let random = getrandom::u64().map_err(Error::Entropy)?;

        let mut origin = Origin {
            boot: config.clone(),
            random,
            inherited: 0,
        };
        // Its contract knows of no state.
        origin.boot.is_heir &= !is_hvt;
        let layout = origin.plan(image)?;
        let is_shared = hypervisor.shares_memory;
        let memory = GuestMemory::new(layout.memory, layout.huge.clone(), is_shared)?;
        let system = system_page(&layout, image.manifest().contract);
        let start = Start {
            registers: vcpu::first_registers(
                image.entry().wrapping_add(layout.bias),
                // As if the entry point had been called.
                layout.stack.end().wrapping_sub(8),
                layout.boot.addr,
                is_hvt,
            ),
            is_supervisor: is_hvt,
        };
        let (vm, vcpu) = assemble(hypervisor, &layout, memory, &system, &start)?;
        let tsc_khz = vcpu.tsc_khz()?;
        let clock = time::clock_from_now(tsc_khz).ok_or(Error::Missing("a TSC frequency"))?;
        boot::load(vm.memory(), &layout, image)?;
        boot::fill_system(vm.memory(), &layout, &system)?;
        let (devices, hvt) = if is_hvt {
            let (args, memory) = (&config.args, vm.memory());
            hvt::boot::fill(memory, &layout, image, args, &backends, tsc_khz)?;
            (Devices::default(), Some(Box::new(Hvt::new(backends))))
        } else {
            boot::fill(vm.memory(), &layout, image, &origin, clock, seed)?;
            let pages = layout.device_pages().map(|(_, gpa)| gpa);
            (Devices::offer(backends, vm.memory(), pages)?, None)
        };
        let space = AddressSpace::new(&layout.mappings);
        Ok(Self {
            vcpu,
            vm,
            layout: Arc::new(layout),
            space,
            clock,
            devices,
            cpu: Arc::clone(&hypervisor.cpu),
            origin,
            standing: Standing::Interrupted,
            hvt,
            copy: None,
        })
    }

    /// Runs the guest until it calls, faults or is interrupted. `answer` is what
    /// its last call returns; a guest that was not in a call takes none.
    ///
    /// # Errors
    ///
    /// Only the host's: what a guest does wrong is an [`Exit::Fault`]. An answer
    /// that does not fit is [`Error::Defect`], and the guest was not entered.
    pub fn enter(&mut self, answer: Option<Answer>) -> Result<Exit, Error> {
        let in_call = match &self.hvt {
            None => self.standing == Standing::InCall,
            Some(hvt) => hvt.in_call(),
        };
        if answer.is_some() != in_call {
            return Err(Error::Defect("an answer without a call, or none to one"));
        }
        self.standing = Standing::Interrupted;
        if let Some(hvt) = &mut self.hvt {
            hvt.devices_mut().begin();
        }
        if let Some(answer) = answer
            && let Some(exit) = self.take_in(answer)
        {
            return Ok(self.left(exit));
        }
        let Some(exit) = self.vcpu.run()? else {
            return Ok(Exit::Interrupted);
        };
        let exit = match exit {
            RawExit::Out { port, bytes, value } => self.call(port, bytes, value),
            RawExit::Stub => self.exception()?,
            RawExit::Broken(cause) => self.fault(cause),
            RawExit::EntryFailed(reason) => return Err(Error::Entry { reason }),
        };
        Ok(self.left(exit))
    }

    /// Notes how the guest was left.
    fn left(&mut self, exit: Exit) -> Exit {
        self.standing = match &exit {
            Exit::Call(Call::Exit { .. }) | Exit::Fault(_) => Standing::Over,
            Exit::Call(_) => Standing::InCall,
            _ => Standing::Interrupted,
        };
        exit
    }

    /// Gives the guest the answer to its call. What comes back is instead of entering it.
    fn take_in(&mut self, answer: Answer) -> Option<Exit> {
        let Some(hvt) = &mut self.hvt else {
            self.vcpu.set_rax_rdx(answer.status.raw(), answer.value);
            return None;
        };
        let user = UserMemory::new(self.vm.memory().mmap(), &self.space);
        match hvt.answer(user, answer) {
            Ok(call) => call.map(Exit::Call),
            Err(cause) => Some(self.fault(cause)),
        }
    }

    /// Takes an output to a port for the call that it is.
    fn call(&mut self, port: u16, bytes: usize, value: u32) -> Exit {
        let called = match &mut self.hvt {
            None => Call::decode(port, bytes, &self.vcpu.registers()).map(Exit::Call),
            Some(hvt) => {
                let user = UserMemory::new(self.vm.memory().mmap(), &self.space);
                let now = self.clock.monotonic_ns(time::tsc());
                hvt.call(user, (port, bytes, value), now)
            }
        };
        called.unwrap_or_else(|cause| self.fault(cause))
    }

    /// Copies out what a guest points to, at most [`CONSOLE_WRITE_MAX`] bytes.
    ///
    /// # Errors
    ///
    /// The guest's fault, when it may not read the whole slice.
    pub fn read_user(&self, slice: UserSlice) -> Result<Vec<u8>, Box<Fault>> {
        self.space
            .read(self.vm.memory(), slice, u64_of(CONSOLE_WRITE_MAX))
            .ok_or_else(|| Box::new(Fault::new(Cause::BadPointer(slice), self.vcpu.registers())))
    }

    /// Copies out the block that a guest hands over.
    ///
    /// # Errors
    ///
    /// The guest's fault, when it may not read the whole of it.
    pub fn read_legacy(&self, block: UserSlice) -> Result<Result<Legacy, BadLegacy>, Box<Fault>> {
        let read = self.space.read(self.vm.memory(), block, BLOCK_MAX);
        let bytes = read
            .ok_or_else(|| Box::new(Fault::new(Cause::BadPointer(block), self.vcpu.registers())))?;
        Ok(if block.len > BLOCK_MAX {
            Err(BadLegacy::Malformed)
        } else {
            Legacy::parse(&bytes)
        })
    }

    /// Gives a guest that has not begun the state of the one before it.
    ///
    /// # Errors
    ///
    /// [`Error::NoHeir`] when its contract knows of no state; [`Error::Defect`] when it
    /// was not made to inherit, or is given too much.
    pub fn inherit(&mut self, state: &[u8]) -> Result<(), Error> {
        if self.hvt.is_some() {
            return if state.is_empty() {
                Ok(())
            } else {
                Err(Error::NoHeir)
            };
        }
        let room = self
            .layout
            .inherited
            .filter(|it| u64_of(state.len()) <= it.len);
        let room = room.ok_or(Error::Defect("state for a guest that has no room for it"))?;
        self.vm.memory().write(room.gpa, state)?;
        let span = Span {
            addr: if state.is_empty() { 0 } else { room.addr },
            len: u64_of(state.len()),
        };
        let at = self
            .layout
            .boot
            .gpa
            .offset(u64_of(offset_of!(BootPage, inherited)));
        self.vm.memory().write(at, span.as_bytes())?;
        self.origin.inherited = span.len;
        Ok(())
    }

    /// Takes what the guest has sent over its connections, and gives it nothing: what it
    /// is about to hand over is all that it knows of.
    ///
    /// # Errors
    ///
    /// As [`Machine::serve`].
    pub fn transmit(&mut self) -> Result<(), Box<Fault>> {
        let done = self.devices.transmit(self.vm.memory(), &self.space);
        done.map_err(|fault| Box::new(Fault::new(Cause::Device(fault), self.vcpu.registers())))
    }

    /// Takes connections at rest away from it, for another guest. Of those that a
    /// guest only claims to have there are none.
    pub fn give_streams(&mut self, resting: Vec<Resting>) -> Vec<Moved> {
        self.devices.give_streams(resting)
    }

    /// Has it asked for connections that another guest had.
    pub fn take_streams(&mut self, moved: Vec<Moved>) {
        self.devices.take_streams(moved);
    }

    /// A way to the same disk that a device of this name is attached to, for a guest
    /// that is to take this one's place; none when its medium cannot be shared.
    pub fn share_disk(&self, device: &str) -> Option<std::io::Result<Box<dyn Disk>>> {
        self.disks().find(|disk| disk.id() == device)?.share()
    }

    /// Makes the disks that it has from another guest its own.
    ///
    /// # Errors
    ///
    /// When what it wrote so far cannot be put where it belongs.
    pub fn own_disks(&mut self) -> std::io::Result<()> {
        let hvt = self.hvt.iter_mut();
        let others = hvt.flat_map(|hvt| hvt.devices_mut().disks_mut());
        self.devices
            .disks_mut()
            .chain(others)
            .try_for_each(|disk| disk.own())
    }

    /// Keeps a guest that has not begun, and is to take another's place, off the wires
    /// that the other is on: both have the same addresses.
    pub fn hold_wires(&mut self) {
        self.devices.hold_wires();
        if let Some(hvt) = &mut self.hvt {
            hvt.devices_mut().hold_wires();
        }
    }

    /// Lets it go on its wires.
    pub fn own_wires(&mut self) {
        self.devices.own_wires();
        if let Some(hvt) = &mut self.hvt {
            hvt.devices_mut().own_wires();
        }
    }

    fn disks(&self) -> impl Iterator<Item = &dyn Disk> {
        let others = self.hvt.iter().flat_map(|hvt| hvt.devices().disks());
        self.devices.disks().chain(others)
    }

    /// Looks at the queues of all devices, does what is there, as far as is good for
    /// one turn, and says which devices have something for the guest.
    ///
    /// # Errors
    ///
    /// The guest's fault, when a queue or what is in it makes no sense.
    pub fn serve(&mut self) -> Result<Served, Box<Fault>> {
        if let Some(hvt) = &mut self.hvt {
            return Ok(Served {
                ready: hvt.ready(),
                more: false,
            });
        }
        let served = self.devices.serve(self.vm.memory(), &self.space);
        served.map_err(|fault| Box::new(Fault::new(Cause::Device(fault), self.vcpu.registers())))
    }

    /// Looks at the queue that a [`Call::Kick`] names, and answers it.
    ///
    /// # Errors
    ///
    /// As [`Machine::serve`].
    pub fn kick(&mut self, target: u64) -> Result<Answer, Box<Fault>> {
        match self.devices.kick(self.vm.memory(), &self.space, target) {
            Ok(true) => Ok(Answer::ok(0)),
            Ok(false) => Ok(Answer::INVALID),
            Err(fault) => Err(Box::new(Fault::new(
                Cause::Device(fault),
                self.vcpu.registers(),
            ))),
        }
    }

    /// Whether it has any device.
    #[must_use]
    pub fn has_devices(&self) -> bool {
        let mut hvt = self.hvt.iter().map(|hvt| hvt.devices());
        !self.devices.is_empty() || hvt.any(|devices| !devices.is_empty())
    }

    /// What becomes readable when [`Machine::serve`] has something to do that the
    /// guest did not ask for.
    pub fn device_fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let hvt = self.hvt.iter().flat_map(|hvt| hvt.devices().fds());
        self.devices.fds().chain(hvt)
    }

    /// Lets go of its devices' back ends, for a guest that will not run again: the
    /// machine itself may take a while to go.
    pub fn release_devices(&mut self) {
        self.devices.release();
        if let Some(hvt) = &mut self.hvt {
            hvt.devices_mut().release();
        }
    }

    /// The guest's clock now.
    #[must_use]
    pub fn monotonic_ns(&self) -> u64 {
        self.clock.monotonic_ns(time::tsc())
    }

    /// Where everything stands in this guest.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The words on the guest's stack or heap at `addr`, for a backtrace.
    pub(crate) fn read_words<const N: usize>(&self, addr: u64) -> Option<[u64; N]> {
        let len = u64::try_from(N).ok()?.checked_mul(8)?;
        let bytes = self
            .space
            .read(self.vm.memory(), UserSlice { addr, len }, len)?;
        let mut words = [0; N];
        for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = u64::from_le_bytes(bytes.try_into().ok()?);
        }
        Some(words)
    }

    /// What the guest may touch.
    pub(crate) const fn space(&self) -> &AddressSpace {
        &self.space
    }

    fn fault(&self, cause: Cause) -> Exit {
        fault(cause, self.vcpu.registers())
    }

    /// Reads what the CPU pushed before it ran the stub: error code (or nothing),
    /// RIP, CS, RFLAGS, RSP, SS, at the top of the fault stack.
    fn exception(&mut self) -> Result<Exit, Error> {
        let mut registers = self.vcpu.registers();
        let stub = registers.rip;
        let Some(vector) = SystemPage::vector_of_stub(self.layout.system.addr, stub) else {
            return Ok(self.fault(Cause::Unexpected { what: "fault port" }));
        };
        let top = self
            .layout
            .fault_stack
            .gpa
            .offset(self.layout.fault_stack.len);
        let mut frame = [[0; 8]; 6];
        for (word, at) in frame.iter_mut().zip((0_u64..6).rev()) {
            let below = at.saturating_add(1).saturating_mul(8);
            self.vm
                .memory()
                .read(Gpa(top.0.saturating_sub(below)), word)?;
        }
        let [error, rip, _cs, rflags, rsp, _ss] = frame.map(u64::from_le_bytes);
        registers.rip = rip;
        registers.rsp = rsp;
        registers.rflags = rflags;
        let Some(hvt) = &mut self.hvt else {
            let exception = Exception::new(vector, error, self.vcpu.cr2()?);
            return Ok(fault(Cause::Exception(exception), registers));
        };
        let sregs = self.vcpu.system_registers();
        let exception = Exception::new(vector, error, sregs.cr2);
        let context = Context {
            regs: registers,
            fs_base: sregs.fs.base,
            gs_base: sregs.gs.base,
        };
        let user = UserMemory::new(self.vm.memory().mmap(), &self.space);
        match hvt.exception(user, &context, exception) {
            Handled::Resumes(after) => {
                self.vcpu.resume(after.regs, after.fs_base, after.gs_base);
                Ok(Exit::Again)
            }
            Handled::Faults(cause) => Ok(fault(cause, registers)),
        }
    }
}

fn fault(cause: Cause, registers: kvm_regs) -> Exit {
    Exit::Fault(Box::new(Fault::new(cause, registers)))
}

/// Whether these are of the kinds that an image's manifest declares, in that order.
///
/// # Errors
///
/// [`Error::Defect`], when they are not.
pub(crate) fn check_backends(image: &Image, backends: &[Backend]) -> Result<(), Error> {
    let declared = image.manifest().devices.iter().map(|device| device.kind);
    if declared.eq(backends.iter().map(Backend::kind)) {
        Ok(())
    } else {
        Err(Error::Defect("back ends that are not the manifest's"))
    }
}

/// The system page of a guest, which opens the ports of its contract.
pub(crate) fn system_page(layout: &Layout, contract: Contract) -> SystemPage {
    let (page, stack) = (layout.system.addr, layout.fault_stack.end());
    match contract {
        Contract::Hvt => SystemPage::new(page, stack, hvt::PORTS_OPEN),
        Contract::Wharf(_) => SystemPage::new(page, stack, Hypercall::ALL.map(Hypercall::port)),
    }
}

/// Makes a VM over `memory` and a vCPU in it that will go on from `start`.
///
/// # Errors
///
/// When KVM is at its limits.
pub(crate) fn assemble(
    hypervisor: &Hypervisor,
    layout: &Layout,
    memory: GuestMemory,
    system: &SystemPage,
    start: &Start,
) -> Result<(Vm, Vcpu), Error> {
    let vm = Vm::create(&hypervisor.kvm, memory)?;
    let root = layout.tables.root();
    let vcpu = Vcpu::new(vm.fd(), &hypervisor.cpuid, root, system, start)?;
    Ok((vm, vcpu))
}
