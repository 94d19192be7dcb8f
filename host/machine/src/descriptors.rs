//! The one page that tells the CPU about privilege: GDT, TSS, IDT, fault stubs.
//!
//! It is mapped read-only, executable and supervisor-only, at an address that
//! only the host knows. The guest runs at CPL 3 from its first instruction; the
//! CPU is at CPL 0 for exactly one instruction of a guest's life, the `out` of a
//! fault stub, after which the guest never runs again.
//!
//! ```text
//! 0x000  GDT      null, kernel code, kernel data, user data, user code, TSS
//! 0x080  TSS      RSP0 and IST1 = top of the fault stack, then the I/O bitmap
//! 0x200  IDT      32 gates, one per exception, all on IST1
//! 0x400  stubs    16 bytes a vector: out FAULT_PORT, al; hlt
//! ```

use wharf_abi::Hypercall;

use crate::memory::PAGE;

/// Selector of 64-bit user code, with RPL 3 (Intel SDM vol. 3 §3.4.2).
pub(crate) const USER_CODE: u16 = 0x20 | 3;
/// Selector of user data, with RPL 3.
pub(crate) const USER_DATA: u16 = 0x18 | 3;
/// Selector of the task state segment.
pub(crate) const TSS: u16 = 0x28;
const KERNEL_CODE: u16 = 0x08;

/// Where a fault stub reports. Not in the I/O bitmap, so CPL 3 cannot fake it.
pub(crate) const FAULT_PORT: u16 = 0xF0;

const GDT_AT: usize = 0x000;
const TSS_AT: usize = 0x080;
const IDT_AT: usize = 0x200;
const STUBS_AT: usize = 0x400;
const STUB_LEN: usize = 16;
const VECTORS: usize = 32;

/// Size of a 64-bit TSS before its I/O bitmap (SDM vol. 3 §8.7), which is also
/// the I/O map base.
const TSS_LEN: u16 = 0x68;
/// The bitmap covers ports 0 to 0xFF; all above lie outside the TSS limit.
const BITMAP_LEN: u16 = 32;

const _: () = assert!(GDT_AT + 0x38 <= TSS_AT);
const _: () = assert!(TSS_AT + TSS_LEN as usize + BITMAP_LEN as usize + 1 <= IDT_AT);
const _: () = assert!(IDT_AT + VECTORS * 16 <= STUBS_AT);
const _: () = assert!(STUBS_AT + VECTORS * STUB_LEN <= PAGE as usize);

/// Base and limit of a descriptor table, as the CPU's registers hold them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Table {
    pub(crate) base: u64,
    pub(crate) limit: u16,
}

/// The system page's contents and where its tables are.
pub(crate) struct SystemPage {
    pub(crate) bytes: Vec<u8>,
    pub(crate) gdt: Table,
    pub(crate) idt: Table,
    pub(crate) tss: Table,
}

impl SystemPage {
    /// Lays the page out for address `at`, with exceptions pushed below
    /// `fault_stack_top`.
    pub(crate) fn new(at: u64, fault_stack_top: u64) -> Self {
        let tss_base = at.saturating_add(TSS_AT as u64);
        let tss_limit = TSS_LEN.saturating_add(BITMAP_LEN);
        let mut page = PageWriter::new();

        page.put(GDT_AT, &gdt(tss_base, tss_limit));
        page.put(TSS_AT, &tss(fault_stack_top));
        for vector in 0..VECTORS {
            let stub = STUBS_AT.saturating_add(vector.saturating_mul(STUB_LEN));
            let gate = gate(vector, at.saturating_add(stub as u64));
            page.put(IDT_AT.saturating_add(vector.saturating_mul(16)), &gate);
            // out FAULT_PORT, al; hlt
            page.put(stub, &[0xE6, FAULT_PORT.to_le_bytes()[0], 0xF4]);
        }
        Self {
            bytes: page.0,
            gdt: Table {
                base: at.saturating_add(GDT_AT as u64),
                limit: 0x37,
            },
            idt: Table {
                base: at.saturating_add(IDT_AT as u64),
                limit: 0x1FF,
            },
            tss: Table {
                base: tss_base,
                limit: tss_limit,
            },
        }
    }

    /// Which vector's stub is at `rip`, in a system page at `at`. KVM reports
    /// the `out` with RIP at it or behind it.
    pub(crate) fn vector_of_stub(at: u64, rip: u64) -> Option<u8> {
        let offset = rip.checked_sub(at.checked_add(STUBS_AT as u64)?)?;
        let vector = offset.checked_div(STUB_LEN as u64)?;
        u8::try_from(vector)
            .ok()
            .filter(|&v| usize::from(v) < VECTORS)
    }
}

struct PageWriter(Vec<u8>);

impl PageWriter {
    fn new() -> Self {
        Self(vec![0; PAGE as usize])
    }

    /// The offsets are this module's constants, checked above at compile time.
    fn put(&mut self, at: usize, bytes: &[u8]) {
        let end = at.saturating_add(bytes.len());
        if let Some(place) = self.0.get_mut(at..end) {
            place.copy_from_slice(bytes);
        }
    }
}

/// Descriptors with their accessed bits set, so that the CPU never writes to
/// the page (SDM vol. 3 §3.4.5.1).
fn gdt(tss_base: u64, tss_limit: u16) -> Vec<u8> {
    const KERNEL_CODE_64: u64 = 0x00AF_9B00_0000_FFFF;
    const KERNEL_DATA: u64 = 0x00CF_9300_0000_FFFF;
    const USER_DATA: u64 = 0x00CF_F300_0000_FFFF;
    const USER_CODE_64: u64 = 0x00AF_FB00_0000_FFFF;
    const TSS_BUSY: u64 = 0x0000_8B00_0000_0000;

    let tss_low = TSS_BUSY
        | u64::from(tss_limit)
        | (tss_base & 0xFF_FFFF) << 16
        | (tss_base >> 24 & 0xFF) << 56;
    let tss_high = tss_base >> 32;
    [
        0,
        KERNEL_CODE_64,
        KERNEL_DATA,
        USER_DATA,
        USER_CODE_64,
        tss_low,
        tss_high,
    ]
    .into_iter()
    .flat_map(u64::to_le_bytes)
    .collect()
}

fn tss(fault_stack_top: u64) -> Vec<u8> {
    let mut tss = vec![0; usize::from(TSS_LEN)];
    let mut put = |at: usize, bytes: &[u8]| {
        if let Some(place) = tss.get_mut(at..at.saturating_add(bytes.len())) {
            place.copy_from_slice(bytes);
        }
    };
    put(0x04, &fault_stack_top.to_le_bytes()); // RSP0
    put(0x24, &fault_stack_top.to_le_bytes()); // IST1
    put(0x66, &TSS_LEN.to_le_bytes()); // I/O map base

    // A set bit forbids its port. One more byte of ones must follow the map.
    let mut bitmap = vec![0xFF; usize::from(BITMAP_LEN).saturating_add(1)];
    for call in Hypercall::IMPLEMENTED {
        let port = usize::from(call.port());
        if let Some(byte) = bitmap.get_mut(port / 8) {
            *byte &= !(1 << (port % 8));
        }
    }
    tss.extend(bitmap);
    tss
}

/// A 64-bit interrupt gate on IST1 (SDM vol. 3 §6.14.1). `int3` and `into` may
/// be raised from CPL 3, so that they report as themselves.
fn gate(vector: usize, handler: u64) -> [u8; 16] {
    let dpl: u64 = if matches!(vector, 3 | 4) { 3 } else { 0 };
    let low = handler & 0xFFFF
        | u64::from(KERNEL_CODE) << 16
        | 1 << 32
        | (0x8E | dpl << 5) << 40
        | (handler >> 16 & 0xFFFF) << 48;
    let high = handler >> 32;
    let mut gate = [0; 16];
    let (first, second) = gate.split_at_mut(8);
    first.copy_from_slice(&low.to_le_bytes());
    second.copy_from_slice(&high.to_le_bytes());
    gate
}

#[cfg(test)]
mod tests {
    use wharf_abi::Hypercall;

    use super::{STUBS_AT, SystemPage, TSS_AT, TSS_LEN};

    const AT: u64 = 0x1234_5678_9000;

    #[test]
    fn the_bitmap_opens_the_hypercall_ports_and_no_other() {
        let page = SystemPage::new(AT, 0);
        let map = TSS_AT + usize::from(TSS_LEN);
        for port in 0..256 {
            let open = page.bytes[map + port / 8] & 1 << (port % 8) == 0;
            let call = Hypercall::from_port(port.try_into().unwrap());
            assert_eq!(open, call.is_some(), "port {port:#x}");
        }
        assert_eq!(page.bytes[map + 32], 0xFF);
        assert_eq!(page.tss.limit, 0x68 + 32);
    }

    #[test]
    fn a_stub_tells_its_vector_before_and_behind_the_out() {
        for vector in 0..32 {
            let stub = AT + STUBS_AT as u64 + u64::from(vector) * 16;
            assert_eq!(SystemPage::vector_of_stub(AT, stub), Some(vector));
            assert_eq!(SystemPage::vector_of_stub(AT, stub + 2), Some(vector));
        }
        for rip in [0, AT, AT + STUBS_AT as u64 - 1, AT + 0x600, u64::MAX] {
            assert_eq!(SystemPage::vector_of_stub(AT, rip), None, "{rip:#x}");
        }
    }

    #[test]
    fn a_gate_points_at_its_stub() {
        let page = SystemPage::new(AT, 0);
        for vector in 0..32_usize {
            let gate = &page.bytes[0x200 + vector * 16..][..16];
            let word = |at: usize, len: usize| {
                gate[at..at + len]
                    .iter()
                    .rev()
                    .fold(0_u64, |n, &b| n << 8 | u64::from(b))
            };
            let handler = word(0, 2) | word(6, 2) << 16 | word(8, 4) << 32;
            assert_eq!(handler, AT + STUBS_AT as u64 + vector as u64 * 16);
            assert_eq!(word(2, 2), 0x08);
            assert_eq!(gate[4], 1, "IST1");
            assert_eq!(gate[5], if matches!(vector, 3 | 4) { 0xEE } else { 0x8E });
        }
    }
}
