//! Guests of Solo5's hvt contract: binaries that were built for ring 0, at CPL 3.
//!
//! ```text
//!   guest ──▶ out 0x501 … 0x508 ──▶ call ──▶ device, or the host's to answer
//!         ──▶ exception ──▶ privileged instruction? ──▶ emulate ──▶ guest
//!                           anything else ──▶ handler of the guest's own
//! ```
//!
//! Such a guest loads descriptor tables and segments when it starts, and expects its
//! exceptions at handlers of its own. Neither is the CPU's here: what it loads is kept
//! in [`Cpu`], and an exception's frame is written by the host. Page tables it has none,
//! so that its memory is protected as any other guest's is: code is not writable and
//! data not executable, whatever it does.
//!
//! Each call and each instruction that is emulated is an exit, after which the host has
//! its say. A guest that does nothing else is stopped and preempted as any other.
//!
//! The contract is Solo5's `hvt_abi.h` in version 2. What its tender does and the
//! contract does not say is decided in the file that does it.

mod call;
mod carried;
mod cpu;
mod device;
mod emulate;
mod exception;
mod operand;
#[cfg(test)]
mod testing;

pub(crate) mod boot;
mod layout;

use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use wharf_abi::hypercall::FOREVER;
use wharf_abi::{Answer, Interest};

use crate::device::{Backend, UserMemory};
use crate::exit::{Call as HostCall, Exit};
use crate::fault::{Cause, Exception as CpuException};
use crate::space::UserSlice;
use call::{Call, Direction};
use cpu::Cpu;
use device::Devices;
use emulate::Refusal;
use exception::Exception;

pub(crate) use call::PORTS_OPEN;
pub(crate) use carried::CarriedHvt;
pub(crate) use emulate::Context;
pub(crate) use layout::plan;

/// An hvt guest, but for its vCPU and memory.
#[derive(Debug)]
pub(crate) struct Hvt {
    cpu: Cpu,
    devices: Devices,
    /// The call that the host has not answered yet.
    pending: Option<Pending>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Pending {
    Puts(UserSlice),
    Poll(call::Poll),
}

/// What is to be done about an exception.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Handled {
    /// The guest goes on like this.
    Resumes(Context),
    /// It is over.
    Faults(Cause),
}

impl Hvt {
    /// A guest that starts, with what stands behind the devices of its manifest.
    pub(crate) fn new(backends: Vec<Backend>) -> Self {
        Self {
            cpu: Cpu::new(),
            devices: Devices::new(backends),
            pending: None,
        }
    }

    pub(crate) const fn devices(&self) -> &Devices {
        &self.devices
    }

    pub(crate) const fn devices_mut(&mut self) -> &mut Devices {
        &mut self.devices
    }

    /// Whether the guest waits for an answer to a call.
    pub(crate) const fn in_call(&self) -> bool {
        self.pending.is_some()
    }

    /// Whether a device has something for the guest. Which one the guest is told when
    /// it goes on.
    pub(crate) fn ready(&mut self) -> Interest {
        match self.devices.ready() {
            0 => Interest::NONE,
            _ => Interest::DEVICES,
        }
    }

    /// Takes in the host's answer. What is left to be asked first comes back.
    ///
    /// # Errors
    ///
    /// The guest's fault: where the answer is to go it cannot.
    pub(crate) fn answer(
        &mut self,
        user: UserMemory<'_>,
        answer: Answer,
    ) -> Result<Option<HostCall>, Cause> {
        match self.pending.take() {
            // The contract writes all or nothing, the host as much as goes at once.
            Some(Pending::Puts(slice)) => {
                let rest = UserSlice {
                    addr: slice.addr.saturating_add(answer.value),
                    len: slice.len.saturating_sub(answer.value),
                };
                if rest.len == 0 || answer.value == 0 {
                    return Ok(None);
                }
                self.pending = Some(Pending::Puts(rest));
                Ok(Some(HostCall::ConsoleWrite(rest)))
            }
            Some(Pending::Poll(poll)) => {
                poll.answer(user, self.devices.ready())?;
                Ok(None)
            }
            None => Ok(None),
        }
    }

    /// Does what an output to a port asks for.
    ///
    /// # Errors
    ///
    /// The guest's fault.
    pub(crate) fn call(
        &mut self,
        user: UserMemory<'_>,
        (port, bytes, value): (u16, usize, u32),
        now_ns: u64,
    ) -> Result<Exit, Cause> {
        match Call::read(port, bytes, value, user)? {
            Call::WallTime(call) => {
                let since = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
                call.answer(user, since.as_nanos().try_into().unwrap_or(u64::MAX))?;
            }
            Call::Puts(slice) => {
                self.pending = Some(Pending::Puts(slice));
                return Ok(Exit::Call(HostCall::ConsoleWrite(slice)));
            }
            Call::Poll(poll, timeout_ns) => {
                self.pending = Some(Pending::Poll(poll));
                return Ok(Exit::Call(HostCall::Wait {
                    deadline_ns: now_ns.checked_add(timeout_ns).unwrap_or(FOREVER),
                    interest: Interest::DEVICES.bits(),
                }));
            }
            Call::Block(block, direction) => {
                let status = self.devices.transfer(user, &block, direction)?;
                block.answer(user, status)?;
            }
            Call::Net(net, Direction::Write) => {
                let status = self.devices.send(user, &net)?;
                net.answer(user, status, None)?;
            }
            Call::Net(net, Direction::Read) => {
                let (status, received) = self.devices.receive(user, &net)?;
                net.answer(user, status, received)?;
            }
            Call::Halt { status } => return Ok(Exit::Call(HostCall::Exit { status })),
        }
        Ok(Exit::Again)
    }

    /// Does the instruction that raised an exception, if it is one that only ring 0 may
    /// do, or takes the exception to the guest's handler.
    pub(crate) fn exception(
        &mut self,
        user: UserMemory<'_>,
        context: &Context,
        raised: CpuException,
    ) -> Handled {
        let mut context = *context;
        let mut exception = Exception {
            vector: raised.vector,
            error: raised.error,
            cr2: raised.cr2,
        };
        let is_return = || emulate::is_return(context.regs.rip, user);
        if exception.vector == exception::PROTECTION
            || exception.vector == exception::PAGE_FAULT && is_return()
        {
            match emulate::emulate(&mut self.cpu, &context, user) {
                Ok(done) if !done.is_step => return Handled::Resumes(done.after),
                Ok(done) => {
                    context = done.after;
                    exception = Exception::STEP;
                }
                Err(Refusal::Ordinary) => {}
                Err(Refusal::Raises(instead)) => exception = instead,
                Err(Refusal::Halts) => return Handled::Faults(Cause::Halted),
                Err(Refusal::Privileged(what)) => {
                    return Handled::Faults(Cause::Privileged { what });
                }
                Err(Refusal::Port {
                    port,
                    direction,
                    bytes,
                }) => return Handled::Faults(Cause::port(port, direction, bytes)),
            }
        }
        if let (exception::PAGE_FAULT, Some(error)) = (exception.vector, &mut exception.error) {
            // Ring 0 is where the guest believes to be, and nothing where the host is.
            *error &= !exception::ERROR_USER;
            if exception.cr2.is_some_and(|addr| !user.has(addr)) {
                *error &= !exception::ERROR_PRESENT;
            }
        }
        match exception::raise(&mut self.cpu, &context.regs, user, exception) {
            Some(regs) => Handled::Resumes(Context { regs, ..context }),
            None => Handled::Faults(Cause::Exception(CpuException {
                vector: exception.vector,
                error: exception.error,
                cr2: exception.cr2,
            })),
        }
    }
}
