//! The ACPI tables: hardware-reduced, nothing in them that the machine does not have.
//!
//! RSDP, XSDT, FADT, MADT, MCFG, and a DSDT with the PCI root, COM1, the power and sleep buttons and soft-off. Built
//! from constants and the number of vCPUs alone; a guest may overwrite its copy, nobody reads it back.

use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, And, Device, EISAName, Field, FieldAccessType, FieldEntry,
    FieldLockRule, FieldUpdateRule, IO, If, Interrupt, Local, Memory32Fixed, Method, Name, Notify, OpRegion,
    OpRegionSpace, Package, Path, ResourceTemplate, Store, ZERO,
};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::{GenericAddress, Sdt};
use acpi_tables::{Aml, AmlSink};

use crate::irq::Gsi;
use crate::layout::{
    ACPI_PORT, COM1_PORT, ECAM, ECAM_SIZE, IOAPIC, LAPIC, PCI_CONFIG_PORT, PCI_WINDOW, PCI_WINDOW_SIZE,
};
use crate::power;

const OEM: [u8; 6] = *b"DOMUS ";
const OEM_TABLE: [u8; 8] = *b"DOMUSVM ";

/// The tables as one block of memory, to be put at the address they were built for.
pub struct Tables {
    /// The bytes.
    pub bytes: Vec<u8>,
    /// Physical address of the RSDP, within them.
    pub rsdp: u64,
}

impl Tables {
    /// The tables of a machine with `vcpus` vCPUs, for the address `base` below 4 GiB.
    pub fn new(base: u32, vcpus: u8) -> Self {
        let mut tables = Self { bytes: Vec::new(), rsdp: 0 };
        let base = u64::from(base);
        let dsdt = tables.place(base, dsdt().as_slice());
        let entries = [fadt(dsdt), madt(vcpus), mcfg()].map(|table| tables.place(base, table.as_slice()));
        let mut xsdt = table(*b"XSDT", 36, 1);
        for entry in entries {
            xsdt.append_slice(&entry.to_le_bytes());
        }
        let xsdt = tables.place(base, xsdt.as_slice());
        let mut rsdp = Vec::new();
        Rsdp::new(OEM, xsdt).to_aml_bytes(&mut rsdp);
        tables.rsdp = tables.place(base, &rsdp);
        tables
    }

    /// Appends a table at the next multiple of 16; its physical address.
    fn place(&mut self, base: u64, table: &[u8]) -> u64 {
        self.bytes.resize(self.bytes.len().next_multiple_of(16), 0);
        let address = base + self.bytes.len() as u64;
        self.bytes.extend_from_slice(table);
        address
    }
}

fn table(signature: [u8; 4], length: u32, revision: u8) -> Sdt {
    Sdt::new(signature, length, revision, OEM, OEM_TABLE, 1)
}

/// Fixed ACPI description table (ACPI 6.5 §5.2.9).
fn fadt(dsdt: u64) -> Sdt {
    /// `IAPC_BOOT_ARCH`: no VGA, no CMOS clock; no 8042 is the absence of its flag.
    const BOOT_ARCH: u16 = 1 << 2 | 1 << 5;
    /// `WBINVD`, no fixed power button, no fixed sleep button, `RESET_REG_SUP`, `HW_REDUCED_ACPI`.
    const FLAGS: u32 = 1 << 0 | 1 << 4 | 1 << 5 | 1 << 10 | 1 << 20;
    let port = |register: u64| GenericAddress::io_port_address::<u8>((ACPI_PORT + register) as u16);
    let mut fadt = table(*b"FACP", 276, 6);
    fadt.write_u32(40, dsdt as u32);
    fadt.write_u16(109, BOOT_ARCH);
    fadt.write_u32(112, FLAGS);
    fadt.write(116, port(power::RESET));
    fadt.write_u8(128, power::RESET_VALUE);
    fadt.write_u8(131, 5);
    fadt.write_u64(140, dsdt);
    fadt.write(244, port(power::SLEEP_CONTROL));
    fadt.write(256, port(power::SLEEP_STATUS));
    fadt.write_bytes(268, b"DOMUS\0\0\0");
    fadt
}

/// Multiple APIC description table (ACPI 6.5 §5.2.12): a LAPIC for each vCPU, whose id is its number, and the IOAPIC.
fn madt(vcpus: u8) -> Sdt {
    let mut madt = table(*b"APIC", 44, 5);
    madt.write_u32(36, LAPIC as u32);
    for id in 0..vcpus {
        // Processor local APIC: uid, id, enabled.
        madt.append_slice(&[0, 8, id, id, 1, 0, 0, 0]);
    }
    // I/O APIC: its id follows those of the LAPICs; its pins are the GSIs from 0.
    let [a, b, c, d] = (IOAPIC as u32).to_le_bytes();
    madt.append_slice(&[1, 12, vcpus, 0, a, b, c, d, 0, 0, 0, 0]);
    madt
}

/// PCI Express memory mapped configuration (PCI firmware 3.3 §4.1.2): bus 0 of segment 0.
fn mcfg() -> Sdt {
    let mut mcfg = table(*b"MCFG", 44, 1);
    mcfg.append_slice(&ECAM.to_le_bytes());
    mcfg.append_slice(&[0; 8]);
    mcfg
}

fn dsdt() -> Sdt {
    let mut dsdt = table(*b"DSDT", 36, 6);
    let mut aml = Vec::new();
    pci_root(&mut aml);
    com1(&mut aml);
    buttons(&mut aml);
    let s5: u8 = power::SLEEP_TYPE_S5;
    Name::new("_S5_".into(), &Package::new(vec![&s5, &s5, &0u8, &0u8])).to_aml_bytes(&mut aml);
    dsdt.append_slice(&aml);
    dsdt
}

fn pci_root(aml: &mut dyn AmlSink) {
    const CONFIG: u16 = PCI_CONFIG_PORT as u16;
    const WINDOW_END: u32 = (PCI_WINDOW + PCI_WINDOW_SIZE - 1) as u32;
    let cacheable = AddressSpaceCacheable::NotCacheable;
    Device::new(
        "_SB_.PCI0".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0A08")),
            &Name::new("_CID".into(), &EISAName::new("PNP0A03")),
            &Name::new("_UID".into(), &0u8),
            &Name::new("_SEG".into(), &0u8),
            &Name::new("_BBN".into(), &0u8),
            &resources(&[
                &AddressSpace::new_bus_number(0u16, 0u16),
                &IO::new(CONFIG, CONFIG, 1, 8),
                &AddressSpace::new_io(CONFIG + 8, 0xffffu16, None),
                &AddressSpace::new_memory(cacheable, true, PCI_WINDOW as u32, WINDOW_END, None),
            ]),
        ],
    )
    .to_aml_bytes(aml);
    // Without this reservation Linux does not believe the MCFG.
    Device::new(
        "_SB_.MBRD".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0C02")),
            &Name::new("_UID".into(), &0u8),
            &resources(&[&Memory32Fixed::new(true, ECAM as u32, ECAM_SIZE as u32)]),
        ],
    )
    .to_aml_bytes(aml);
}

fn com1(aml: &mut dyn AmlSink) {
    const PORT: u16 = COM1_PORT as u16;
    Device::new(
        "_SB_.COM1".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0501")),
            &Name::new("_UID".into(), &0u8),
            &Name::new("_DDN".into(), &"COM1"),
            &resources(&[
                &Interrupt::new(true, true, false, false, Gsi::COM1.number()),
                &IO::new(PORT, PORT, 1, 8),
            ]),
        ],
    )
    .to_aml_bytes(aml);
}

/// The buttons, and the generic event device that tells of them (ACPI 6.5 §5.6.9).
fn buttons(aml: &mut dyn AmlSink) {
    const PORT: u16 = (ACPI_PORT + power::BUTTONS) as u16;
    let (power_button, sleep_button) = (Path::new("\\_SB_.PWRB"), Path::new("\\_SB_.SLPB"));
    for (path, hid) in [("_SB_.PWRB", "PNP0C0C"), ("_SB_.SLPB", "PNP0C0E")] {
        let (id, uid) = (EISAName::new(hid), 0u8);
        Device::new(path.into(), vec![&Name::new("_HID".into(), &id), &Name::new("_UID".into(), &uid)])
            .to_aml_bytes(aml);
    }
    let pressed = Local(0);
    Device::new(
        "_SB_.GED_".into(),
        vec![
            &Name::new("_HID".into(), &"ACPI0013"),
            &Name::new("_UID".into(), &0u8),
            &resources(&[&Interrupt::new(true, false, false, false, Gsi::GED.number())]),
            &OpRegion::new("EVTR".into(), OpRegionSpace::SystemIO, &PORT, &1u8),
            &Field::new(
                "EVTR".into(),
                FieldAccessType::Byte,
                FieldLockRule::NoLock,
                FieldUpdateRule::WriteAsZeroes,
                vec![FieldEntry::Named(*b"BTNS", 8)],
            ),
            &Method::new(
                "_EVT".into(),
                1,
                true,
                vec![
                    &Store::new(&pressed, &Path::new("BTNS")),
                    &If::new(
                        &And::new(&ZERO, &pressed, &power::POWER_BUTTON),
                        vec![&Notify::new(&power_button, &0x80u8)],
                    ),
                    &If::new(
                        &And::new(&ZERO, &pressed, &power::SLEEP_BUTTON),
                        vec![&Notify::new(&sleep_button, &0x80u8)],
                    ),
                ],
            ),
        ],
    )
    .to_aml_bytes(aml);
}

/// `_CRS` with these descriptors.
fn resources(descriptors: &[&dyn Aml]) -> Name {
    Name::new("_CRS".into(), &ResourceTemplate::new(descriptors.to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    #[test]
    fn every_table_is_where_the_one_before_says_and_sums_to_zero() {
        const BASE: u32 = 0xe_0000;
        let Tables { bytes, rsdp } = Tables::new(BASE, 32);
        let at = |address: u64| &bytes[(address - u64::from(BASE)) as usize..];
        let word = |bytes: &[u8], at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        let whole = |address: u64| {
            let table = at(address);
            &table[..u32::from_le_bytes(table[4..8].try_into().unwrap()) as usize]
        };
        assert_eq!(&at(rsdp)[..8], b"RSD PTR ");
        assert_eq!((sum(&at(rsdp)[..20]), sum(&at(rsdp)[..36])), (0, 0));
        let xsdt = whole(word(at(rsdp), 24));
        assert_eq!((&xsdt[..4], sum(xsdt), xsdt.len()), (&b"XSDT"[..], 0, 36 + 3 * 8));
        for (index, signature) in [b"FACP", b"APIC", b"MCFG"].into_iter().enumerate() {
            let table = whole(word(xsdt, 36 + 8 * index));
            assert_eq!((&table[..4], sum(table)), (&signature[..], 0));
        }
        let fadt = whole(word(xsdt, 36));
        let dsdt = whole(word(fadt, 140));
        assert_eq!((&dsdt[..4], sum(dsdt)), (&b"DSDT"[..], 0));
        assert_eq!(whole(word(xsdt, 44)).len(), 44 + 32 * 8 + 12);
        assert!(bytes.len() < 0x2_0000, "the tables fit below 1 MiB");
    }
}
