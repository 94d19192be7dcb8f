//! An hvt guest that goes on in another process.

use std::io;

use serde::{Deserialize, Serialize};

use super::cpu::Cpu;
use super::device::{Devices, Wires};
use super::{Hvt, Pending};
use crate::device::{Backend, CarriedBackend};
use crate::handover::{BytesRef, CarryError, Luggage};

/// The guest, but for its vCPU and memory.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct CarriedHvt {
    cpu: Cpu,
    fs_base: u64,
    gs_base: u64,
    pending: Option<Pending>,
    backends: Vec<CarriedBackend>,
    wires: Wires,
    /// Of each device, the frame that was taken for it and not delivered.
    frames: Vec<Option<BytesRef>>,
}

impl CarriedHvt {
    pub(crate) fn backends(&self) -> &[CarriedBackend] {
        &self.backends
    }

    /// The bases of FS and GS.
    pub(crate) const fn bases(&self) -> (u64, u64) {
        (self.fs_base, self.gs_base)
    }
}

impl Hvt {
    /// Describes it, with these bases of FS and GS.
    ///
    /// # Errors
    ///
    /// When a file cannot be passed on.
    pub(crate) fn carry(
        &mut self,
        (fs_base, gs_base): (u64, u64),
        luggage: &mut Luggage,
    ) -> io::Result<CarriedHvt> {
        let (backends, frames) = self.devices.carry(luggage)?;
        Ok(CarriedHvt {
            cpu: self.cpu.clone(),
            fs_base,
            gs_base,
            pending: self.pending,
            backends,
            wires: self.devices.wires(),
            frames,
        })
    }

    /// Forgets its devices without a word to anybody.
    pub(crate) fn let_go(&mut self) {
        self.devices.release();
    }

    /// Goes on where another was.
    ///
    /// # Errors
    ///
    /// When what is said of it does not add up.
    pub(crate) fn go_on(
        carried: &CarriedHvt,
        backends: Vec<Backend>,
        luggage: &Luggage,
    ) -> Result<Self, CarryError> {
        Ok(Self {
            cpu: carried.cpu.clone(),
            devices: Devices::carry_on(backends, (carried.wires, &carried.frames), luggage)?,
            pending: carried.pending,
        })
    }
}
