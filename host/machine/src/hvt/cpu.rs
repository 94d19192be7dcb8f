//! The privileged state that an hvt guest believes to have.
//!
//! Nothing of it is in the CPU, where the host's own tables stay. It is looked at when
//! the guest does what depends on it: loads a segment, or has an exception. Tables are
//! in the guest's memory, read when they are needed and only as far as the guest itself
//! may read them, so that it does not matter what they say.

use serde::{Deserialize, Serialize};

use super::exception::Exception;
use crate::device::UserMemory;

/// A table that a register of the CPU's points to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Table {
    pub(crate) base: u64,
    /// Of its last byte.
    pub(crate) limit: u32,
}

/// Registers that only ring 0 has, and segment selectors as the guest loaded them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Cpu {
    pub(crate) gdt: Option<Table>,
    pub(crate) idt: Option<Table>,
    /// The task state, of which the stacks for exceptions count.
    pub(crate) tss: Option<Table>,
    pub(crate) cs: u16,
    pub(crate) ss: u16,
    pub(crate) cr2: u64,
}

/// What a descriptor says of its segment (SDM vol. 3 §3.4.5), where it matters in 64-bit
/// mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Descriptor(u64);

/// Selectors at the start, of tables that are not the guest's to see.
const BOOT_CODE: u16 = 0x08;
const BOOT_DATA: u16 = 0x10;

/// Bytes of a 64-bit TSS up to its I/O map base (SDM vol. 3 §8.7).
const TSS_LIMIT_MIN: u32 = 0x67;
/// Where its stacks for exceptions are, from number 1 on.
const IST_AT: u64 = 0x24;

impl Cpu {
    /// As the contract has a guest start.
    pub(crate) const fn new() -> Self {
        Self {
            gdt: None,
            idt: None,
            tss: None,
            cs: BOOT_CODE,
            ss: BOOT_DATA,
            cr2: 0,
        }
    }

    /// The descriptor behind a selector, which is to blame if there is none.
    ///
    /// # Errors
    ///
    /// As the CPU has them for a load of that selector.
    pub(crate) fn descriptor(
        &self,
        user: UserMemory<'_>,
        selector: u16,
    ) -> Result<Descriptor, Exception> {
        let [low] = self.words(user, selector)?;
        Ok(Descriptor(low))
    }

    /// Takes over a task register.
    ///
    /// # Errors
    ///
    /// As LTR's (SDM vol. 2).
    pub(crate) fn load_task(
        &mut self,
        user: UserMemory<'_>,
        selector: u16,
    ) -> Result<(), Exception> {
        if is_null(selector) {
            return Err(Exception::protection(0));
        }
        let [low, high] = self.words(user, selector)?;
        let descriptor = Descriptor(low);
        if !descriptor.is_available_task() {
            return Err(Exception::protection(selector));
        }
        if !descriptor.is_present() {
            return Err(Exception::not_present(selector));
        }
        let base = descriptor.base() | high << 32;
        if !is_canonical(base) {
            return Err(Exception::protection(selector));
        }
        self.tss = Some(Table {
            base,
            limit: descriptor.limit(),
        });
        Ok(())
    }

    /// Whether a selector is one of 64-bit code for ring 0.
    ///
    /// # Errors
    ///
    /// As the CPU has them for a far return to it.
    pub(crate) fn check_code(&self, user: UserMemory<'_>, selector: u16) -> Result<(), Exception> {
        if is_null(selector) {
            return Err(Exception::protection(0));
        }
        let descriptor = self.descriptor(user, selector)?;
        if !descriptor.is_code_64() || selector & RPL != 0 {
            return Err(Exception::protection(selector));
        }
        if !descriptor.is_present() {
            return Err(Exception::not_present(selector));
        }
        Ok(())
    }

    /// Where the stack for exceptions of this number, 1 to 7, begins.
    pub(crate) fn exception_stack(&self, user: UserMemory<'_>, number: u8) -> Option<u64> {
        let tss = self.tss?;
        let place = u64::from(number).checked_sub(1)?.checked_mul(8)?;
        let at = IST_AT.checked_add(place)?;
        if tss.limit < TSS_LIMIT_MIN {
            return None;
        }
        let stack = u64::from_le_bytes(user.read(tss.base.checked_add(at)?)?);
        is_canonical(stack).then_some(stack)
    }

    /// So many words of the GDT from a selector's descriptor on.
    fn words<const N: usize>(
        &self,
        user: UserMemory<'_>,
        selector: u16,
    ) -> Result<[u64; N], Exception> {
        let bad = Exception::protection(selector);
        let gdt = self.gdt.filter(|_| selector & LOCAL == 0).ok_or(bad)?;
        let offset = u64::from(selector & !(RPL | LOCAL));
        let mut words = [0; N];
        for (word, at) in words.iter_mut().zip((0_u64..).map(|n| n.saturating_mul(8))) {
            let at = offset.saturating_add(at);
            if at.saturating_add(7) > u64::from(gdt.limit) {
                return Err(bad);
            }
            let addr = gdt.base.checked_add(at).ok_or(bad)?;
            let bytes = user.read(addr).ok_or(Exception::page_fault(addr, false))?;
            *word = u64::from_le_bytes(bytes);
        }
        Ok(words)
    }
}

/// Requested privilege level and table of a selector (SDM vol. 3 §3.4.2).
pub(crate) const RPL: u16 = 0b11;
const LOCAL: u16 = 1 << 2;

/// Whether a selector selects nothing.
pub(crate) const fn is_null(selector: u16) -> bool {
    selector & !RPL == 0
}

impl Descriptor {
    const fn has(self, bit: u32) -> bool {
        self.0 >> bit & 1 != 0
    }

    pub(crate) const fn is_present(self) -> bool {
        self.has(47)
    }

    const fn privilege(self) -> u64 {
        self.0 >> 45 & 0b11
    }

    /// Code in 64-bit mode that ring 0 can go to.
    const fn is_code_64(self) -> bool {
        self.has(44) && self.has(43) && self.has(53) && !self.has(54) && self.privilege() == 0
    }

    /// What DS, ES, FS and GS can hold: data, or code that can be read.
    pub(crate) const fn is_readable(self) -> bool {
        self.has(44) && (!self.has(43) || self.has(41))
    }

    /// What SS can hold: data of ring 0 that can be written.
    pub(crate) const fn is_stack(self) -> bool {
        self.has(44) && !self.has(43) && self.has(41) && self.privilege() == 0
    }

    const fn is_available_task(self) -> bool {
        !self.has(44) && self.0 >> 40 & 0xF == 0x9
    }

    pub(crate) const fn base(self) -> u64 {
        self.0 >> 16 & 0xFF_FFFF | (self.0 >> 56) << 24
    }

    const fn limit(self) -> u32 {
        let [a, b, _, _, _, _, c, _] = self.0.to_le_bytes();
        let limit = u32::from_le_bytes([a, b, c & 0xF, 0]);
        if self.has(55) {
            limit << 12 | 0xFFF
        } else {
            limit
        }
    }
}

/// Whether the upper bits of an address are all as bit 47 (SDM vol. 1 §3.3.7.1).
pub(crate) const fn is_canonical(addr: u64) -> bool {
    let top = addr >> 47;
    top == 0 || top == 0x1_FFFF
}
