//! What a snapshot keeps of devices: what the guest's own memory does not say.
//!
//! That is how far each queue has got, and what the guest believes of connections and
//! of its input. Where the queues are is read again from the guest's memory, with all
//! the checks that a set-up gets.

use serde::{Deserialize, Serialize};
use virtio_queue::{Queue, QueueT};
use wharf_abi::device::QUEUES_MAX;

use super::setup::{self, Accepted};
use super::stream::StreamsState;
use super::{Backend, Device, DeviceFault, Devices, UserMemory};
use crate::memory::GuestMemory;
use crate::space::AddressSpace;

pub(crate) use super::stream::CONNECTIONS_MAX;

/// One device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DeviceState {
    /// Requests answered so far, modulo 2¹⁶, for each queue that the driver has
    /// enabled; none when it has not set the device up.
    pub(crate) queues: Option<[Option<u16>; QUEUES_MAX]>,
    /// The connections of a device for streams.
    pub(crate) streams: Option<StreamsState>,
    /// Whether the guest knows that there is no more input.
    pub(crate) has_told_end: bool,
}

impl Devices {
    /// What is to be kept of each.
    ///
    /// # Errors
    ///
    /// With a device's place, when its page does not say any more how it was set up.
    pub(crate) fn save(
        &self,
        memory: &GuestMemory,
        space: &AddressSpace,
    ) -> Result<Vec<DeviceState>, usize> {
        let user = UserMemory::new(memory.mmap(), space);
        let devices = self.devices.iter().enumerate();
        devices
            .map(|(place, device)| device.save(memory, user).ok_or(place))
            .collect()
    }

    /// Has devices that were just offered go on where others were.
    ///
    /// # Errors
    ///
    /// With a device's place, and its guest's fault if that is what is wrong.
    pub(crate) fn go_on(
        &mut self,
        states: &[DeviceState],
        memory: &GuestMemory,
        space: &AddressSpace,
    ) -> Result<(), (usize, Option<DeviceFault>)> {
        let user = UserMemory::new(memory.mmap(), space);
        for ((place, device), state) in self.devices.iter_mut().enumerate().zip(states) {
            if let Some(answered) = &state.queues {
                let accepted = setup::read(memory, user, device.page, &device.terms);
                let accepted = accepted.map_err(|(queue, broken)| {
                    let fault = DeviceFault {
                        device: place,
                        queue,
                        broken,
                    };
                    (place, Some(fault))
                })?;
                let mut accepted = accepted.ok_or((place, None))?;
                for (queue, answered) in accepted.queues.iter_mut().zip(answered) {
                    match (queue, answered) {
                        (Some(queue), Some(answered)) => {
                            // What was taken out and not answered is taken out again.
                            queue.set_next_avail(*answered);
                            queue.set_next_used(*answered);
                        }
                        (None, None) => {}
                        _ => return Err((place, None)),
                    }
                }
                device.accepted = Some(accepted);
            }
            match (&mut device.backend, &state.streams) {
                (Backend::Stream(streams), Some(state)) => streams.go_on(state),
                (Backend::Console(console), None) if state.has_told_end => console.set_told_end(),
                _ => {}
            }
        }
        Ok(())
    }
}

impl Device {
    fn save(&self, memory: &GuestMemory, user: UserMemory<'_>) -> Option<DeviceState> {
        let queues = match &self.accepted {
            None => None,
            Some(accepted) => {
                let again = setup::read(memory, user, self.page, &self.terms).ok()??;
                if !is_same(accepted, &again) {
                    return None;
                }
                let answered = |queue: &Option<Queue>| queue.as_ref().map(QueueT::next_used);
                Some(accepted.queues.each_ref().map(answered))
            }
        };
        Some(DeviceState {
            queues,
            streams: match &self.backend {
                Backend::Stream(streams) => Some(streams.state()),
                _ => None,
            },
            has_told_end: match &self.backend {
                Backend::Console(console) => console.has_told_end(),
                _ => false,
            },
        })
    }
}

fn is_same(a: &Accepted, b: &Accepted) -> bool {
    let place = |queue: &Option<Queue>| {
        let queue = queue.as_ref()?;
        let rings = (queue.desc_table(), queue.avail_ring(), queue.used_ring());
        Some((queue.size(), rings))
    };
    let places = |it: &Accepted| it.queues.each_ref().map(place);
    a.features == b.features && places(a) == places(b)
}
