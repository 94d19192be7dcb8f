//! The one page that tells the CPU about privilege: GDT, TSS, IDT, fault stubs.
//!
//! It is mapped read-only, executable and supervisor-only. Its address is no
//! secret (it follows the boot page, and SGDT may tell it): the U/S bit is what
//! protects it. The guest runs at CPL 3 from its first instruction; the
//! CPU is at CPL 0 for exactly one instruction of a guest's life, the `out` of a
//! fault stub, after which the guest never runs again.
//!
//! ```text
//! 0x000  GDT      null, kernel code, kernel data, user data, user code, TSS
//! 0x080  TSS      RSP0 and IST1 = top of the fault stack, then the I/O bitmap
//! 0x200  IDT      32 gates, one per exception, all on IST1
//! 0x400  stubs    16 bytes a vector: out FAULT_PORT, al; hlt
//! ```

/// Selector of 64-bit user code, with RPL 3 (Intel SDM vol. 3 §3.4.2).
pub(crate) const USER_CODE: u16 = 0x20 | 3;
/// Selector of user data, with RPL 3.
pub(crate) const USER_DATA: u16 = 0x18 | 3;
/// Selector of the task state segment.
pub(crate) const TSS: u16 = 0x28;
const KERNEL_CODE: u16 = 0x08;

/// Where a fault stub reports. Not in the I/O bitmap, so CPL 3 cannot fake it.
pub(crate) const FAULT_PORT: u16 = 0xF0;

const GDT_AT: u16 = 0x000;
const TSS_AT: u16 = 0x080;
const IDT_AT: u16 = 0x200;
const STUBS_AT: u16 = 0x400;
const END: u16 = 0x600;

const GDT_LEN: u16 = 7 * 8;
const GATE_LEN: u16 = 16;
const STUB_LEN: u16 = 16;
const VECTORS: u16 = 32;

/// Size of a 64-bit TSS before its I/O bitmap (SDM vol. 3 §8.7), which is also
/// the I/O map base.
const TSS_LEN: u16 = 0x68;
/// Most bytes of the bitmap: up to the IDT, with a byte of ones behind it. All ports
/// above those that it covers lie outside the TSS limit.
const BITMAP_MAX: u16 = IDT_AT - TSS_AT - TSS_LEN - 1;

const _: () = assert!(GDT_AT + GDT_LEN <= TSS_AT);
const _: () = assert!(IDT_AT + VECTORS * GATE_LEN <= STUBS_AT);
const _: () = assert!(STUBS_AT + VECTORS * STUB_LEN <= END);

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
    /// `fault_stack_top` and these ports open. One that the bitmap has no place for, at
    /// 0x8B8 or above, stays closed.
    pub(crate) fn new(at: u64, fault_stack_top: u64, open: impl IntoIterator<Item = u16>) -> Self {
        let table = |offset, limit| Table {
            base: at.saturating_add(u64::from(offset)),
            limit,
        };
        let gdt = table(GDT_AT, GDT_LEN.saturating_sub(1));
        let bitmap = bitmap_of(open);
        // The limit includes the byte of ones.
        let bitmap_len = u16::try_from(bitmap.len()).unwrap_or(0);
        let tss = table(TSS_AT, TSS_LEN.saturating_add(bitmap_len).saturating_sub(1));
        let idt = table(IDT_AT, VECTORS.saturating_mul(GATE_LEN).saturating_sub(1));

        let mut bytes = vec![0; usize::from(END)];
        put(&mut bytes, GDT_AT, &gdt_of(tss));
        put(&mut bytes, TSS_AT, &tss_of(fault_stack_top));
        put(&mut bytes, TSS_AT.saturating_add(TSS_LEN), &bitmap);
        for vector in 0..VECTORS {
            let stub = stub_at(vector);
            let gate_at = IDT_AT.saturating_add(vector.saturating_mul(GATE_LEN));
            let handler = at.saturating_add(u64::from(stub));
            put(&mut bytes, gate_at, &gate(vector, handler));
            // out FAULT_PORT, al; hlt
            put(&mut bytes, stub, &[0xE6, FAULT_PORT.to_le_bytes()[0], 0xF4]);
        }
        Self {
            bytes,
            gdt,
            idt,
            tss,
        }
    }

    /// Which vector's stub is at `rip`, in a system page at `at`. KVM reports
    /// the `out` with RIP at it or behind it.
    pub(crate) fn vector_of_stub(at: u64, rip: u64) -> Option<u8> {
        let offset = u16::try_from(rip.checked_sub(at)?).ok()?;
        let vector = offset.checked_sub(STUBS_AT)?.checked_div(STUB_LEN)?;
        u8::try_from(vector)
            .ok()
            .filter(|&v| u16::from(v) < VECTORS)
    }
}

const fn stub_at(vector: u16) -> u16 {
    STUBS_AT.saturating_add(vector.saturating_mul(STUB_LEN))
}

/// The offsets are this module's constants, checked above at compile time.
fn put(page: &mut [u8], at: u16, bytes: &[u8]) {
    let at = usize::from(at);
    if let Some(place) = page.get_mut(at..at.saturating_add(bytes.len())) {
        place.copy_from_slice(bytes);
    }
}

/// Descriptors with their accessed bits set, so that the CPU never writes to
/// the page (SDM vol. 3 §3.4.5.1).
fn gdt_of(tss: Table) -> Vec<u8> {
    const KERNEL_CODE_64: u64 = 0x00AF_9B00_0000_FFFF;
    const KERNEL_DATA: u64 = 0x00CF_9300_0000_FFFF;
    const USER_DATA: u64 = 0x00CF_F300_0000_FFFF;
    const USER_CODE_64: u64 = 0x00AF_FB00_0000_FFFF;
    const TSS_BUSY: u64 = 0x0000_8B00_0000_0000;

    let tss_low = TSS_BUSY
        | u64::from(tss.limit)
        | (tss.base & 0xFF_FFFF) << 16
        | (tss.base >> 24 & 0xFF) << 56;
    let tss_high = tss.base >> 32;
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

fn tss_of(fault_stack_top: u64) -> Vec<u8> {
    let mut tss = vec![0; usize::from(TSS_LEN)];
    put(&mut tss, 0x04, &fault_stack_top.to_le_bytes()); // RSP0
    put(&mut tss, 0x24, &fault_stack_top.to_le_bytes()); // IST1
    put(&mut tss, 0x66, &TSS_LEN.to_le_bytes()); // I/O map base
    tss
}

/// The I/O permission bitmap and the byte of ones behind it. A set bit forbids its port.
fn bitmap_of(open: impl IntoIterator<Item = u16>) -> Vec<u8> {
    let mut bitmap = vec![0xFF; usize::from(BITMAP_MAX)];
    let mut len = 0;
    for port in open {
        let at = usize::from(port / 8);
        if let Some(byte) = bitmap.get_mut(at) {
            *byte &= !(1 << (port % 8));
            len = len.max(at.saturating_add(1));
        }
    }
    bitmap.truncate(len);
    bitmap.push(0xFF);
    bitmap
}

/// A 64-bit interrupt gate on IST1 (SDM vol. 3, "64-Bit Mode IDT"). `int3` may be
/// raised from CPL 3, so that it reports as itself.
fn gate(vector: u16, handler: u64) -> [u8; 16] {
    let dpl: u64 = if vector == 3 { 3 } else { 0 };
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

    use super::{IDT_AT, STUBS_AT, SystemPage, TSS_AT, TSS_LEN};

    const AT: u64 = 0x1234_5678_9000;

    #[test]
    fn the_bitmap_opens_the_hypercall_ports_and_no_other() {
        let map = usize::from(TSS_AT + TSS_LEN);
        let calls: Vec<u16> = Hypercall::ALL.map(Hypercall::port).to_vec();
        for open in [calls, (0x501..=0x50B).collect(), vec![0, 0x7FFF]] {
            let page = SystemPage::new(AT, 0, open.iter().copied());
            let last = page.tss.limit - TSS_LEN;
            assert_eq!(page.bytes[map + usize::from(last)], 0xFF);
            for port in 0..last * 8 {
                let is_open = page.bytes[map + usize::from(port / 8)] & 1 << (port % 8) == 0;
                assert_eq!(is_open, open.contains(&port), "port {port:#x}");
            }
            for port in open.iter().filter(|port| **port < 0x1000) {
                assert!(port / 8 < last);
            }
            assert!(page.tss.limit < IDT_AT - TSS_AT);
        }
    }

    #[test]
    fn a_stub_tells_its_vector_before_and_behind_the_out() {
        let stubs = AT + u64::from(STUBS_AT);
        for vector in 0..32 {
            let stub = stubs + u64::from(vector) * 16;
            assert_eq!(SystemPage::vector_of_stub(AT, stub), Some(vector));
            assert_eq!(SystemPage::vector_of_stub(AT, stub + 2), Some(vector));
        }
        for rip in [0, AT, stubs - 1, stubs + 512, AT + (1 << 40), u64::MAX] {
            assert_eq!(SystemPage::vector_of_stub(AT, rip), None, "{rip:#x}");
        }
    }

    #[test]
    fn a_gate_points_at_its_stub() {
        let page = SystemPage::new(AT, 0, []);
        for vector in 0..32_u16 {
            let gate = &page.bytes[usize::from(IDT_AT + vector * 16)..][..16];
            let word = |at: usize, len: usize| {
                gate[at..at + len]
                    .iter()
                    .rev()
                    .fold(0_u64, |n, &b| n << 8 | u64::from(b))
            };
            let handler = word(0, 2) | word(6, 2) << 16 | word(8, 4) << 32;
            assert_eq!(handler, AT + u64::from(STUBS_AT + vector * 16));
            assert_eq!(word(2, 2), 0x08);
            assert_eq!(gate[4], 1, "IST1");
            assert_eq!(gate[5], if vector == 3 { 0xEE } else { 0x8E });
        }
    }
}
