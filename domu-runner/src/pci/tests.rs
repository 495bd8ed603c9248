//! The bus as a guest sees it: both configuration mechanisms, BARs that move, overlap and run wild.

use proptest::prelude::*;

use super::*;

/// Remembers what reached it.
#[derive(Default)]
struct Recorder {
    writes: Mutex<Vec<(u64, Vec<u8>)>>,
    moves: Mutex<Vec<Option<u64>>>,
    controls: Mutex<Vec<u16>>,
}

impl Function for Recorder {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(offset as u8);
    }
    fn write(&self, offset: u64, data: &[u8]) {
        self.writes.lock().unwrap().push((offset, data.to_vec()));
    }
    fn moved(&self, base: Option<u64>) {
        let mut moves = self.moves.lock().unwrap();
        assert_ne!(moves.last().copied().flatten(), base, "a move was repeated");
        moves.push(base);
    }
    fn msix_control(&self, control: u16) {
        self.controls.lock().unwrap().push(control);
    }
}

fn bus(functions: usize) -> (Arc<Root>, Vec<Arc<Recorder>>) {
    let mut root = Root::default();
    let recorders: Vec<_> = (0..functions).map(|_| Arc::new(Recorder::default())).collect();
    for recorder in &recorders {
        let mut config = Config::new(Identity { class: 0x01_8000, ..HOST_BRIDGE });
        let (body, mask) = msix::capability(2, 0x4000, 0x5000);
        let msix = config.add_capability(msix::CAPABILITY, &body, &mask);
        let mut mask = [0; 18];
        mask[2] = 0xff;
        mask[6..].fill(0xff);
        let access_window = config.add_capability(0x09, &[0; 18], &mask);
        let description = Description { config, bar_size: 0x8000, msix, access_window };
        root.add(None, description, recorder.clone()).unwrap();
    }
    (Arc::new(root), recorders)
}

fn poke(root: &Arc<Root>, slot: u64, register: u64, data: &[u8]) {
    Ecam(root.clone()).write(slot << 15 | register, data);
}

fn peek<const N: usize>(root: &Arc<Root>, slot: u64, register: u64) -> [u8; N] {
    let mut data = [0xff; N];
    Ecam(root.clone()).read(slot << 15 | register, &mut data);
    data
}

#[test]
fn a_byte_to_the_reset_control_register_resets_the_machine_and_an_address_is_none() {
    let (root, _) = bus(1);
    let (stop, reasons) = Stop::channel();
    let ports = ConfigPorts::new(root, stop);
    // An address of four bytes covers the register and is none; a byte without the bit asks for nothing.
    ports.write(0, &0x8000_0600_u32.to_le_bytes());
    ports.write(1, &[0x02]);
    assert!(reasons.try_recv().is_err());
    ports.write(1, &[0x06]);
    assert_eq!(reasons.try_recv(), Ok(StopReason::Reboot));
}

#[test]
fn both_mechanisms_show_the_same_functions_and_ones_where_none_is() {
    let (root, _) = bus(1);
    let ports = ConfigPorts::new(root.clone(), Stop::channel().0);
    let read = |address: u32| {
        ports.write(0, &address.to_le_bytes());
        let mut data = [0xff; 4];
        ports.read(4, &mut data);
        data
    };
    assert_eq!(read(0x8000_0000), [0x86, 0x80, 0xc0, 0x29]);
    assert_eq!(read(0x8000_0800), peek(&root, 1, 0));
    assert_eq!(read(0x8000_1000), [0xff; 4], "slot 2");
    assert_eq!(read(0x8000_0900), [0xff; 4], "function 1");
    assert_eq!(read(0x8001_0000), [0xff; 4], "bus 1");
    assert_eq!(read(0x0000_0000), [0xff; 4], "disabled");
    assert_eq!(peek(&root, 2, 0), [0xff; 4]);
    assert_eq!(peek(&root, 0, 0x100), [0; 4], "no extended capability");
    let mut byte = [0xff];
    read(0x8000_0000);
    ports.read(5, &mut byte);
    assert_eq!(byte, [0x80], "a byte of port 0xCFD");
}

#[test]
fn a_bar_answers_where_the_guest_puts_it_and_the_function_hears_of_each_move_once() {
    let (root, recorders) = bus(1);
    let window = Window(root.clone());
    let read = |offset| {
        let mut data = [0xff];
        window.read(offset, &mut data);
        data[0]
    };
    assert_eq!(read(7), 0xff, "decoding is off");
    poke(&root, 1, 4, &[6, 0]);
    poke(&root, 1, 4, &[6, 0]);
    assert_eq!(read(7), 7);
    poke(&root, 1, 0x10, &0xd000_0000u32.to_le_bytes());
    assert_eq!((read(7), read(0x1000_0009)), (0xff, 9));
    poke(&root, 1, 0x10, &0xfee0_0000u32.to_le_bytes());
    assert_eq!(read(0x1000_0009), 0xff);
    poke(&root, 1, 4, &[0, 0]);
    assert_eq!(*recorders[0].moves.lock().unwrap(), [Some(0xc000_0000), Some(0xd000_0000), None]);
}

#[test]
fn of_two_overlapping_bars_the_lower_slot_answers() {
    let (root, recorders) = bus(2);
    for slot in 1..=2 {
        poke(&root, slot, 0x10, &0xc100_0000u32.to_le_bytes());
        poke(&root, slot, 4, &[2]);
    }
    Window(root.clone()).write(0x100_0004, &[1]);
    assert_eq!(recorders[0].writes.lock().unwrap().len(), 1);
    assert_eq!(recorders[1].writes.lock().unwrap().len(), 0);
}

#[test]
fn an_access_across_the_end_of_a_bar_reaches_no_function() {
    let (root, recorders) = bus(2);
    for slot in 1..=2 {
        poke(&root, slot, 4, &[2]);
    }
    Window(root.clone()).write(0x7ffe, &[0; 4]);
    assert!(recorders.iter().all(|r| r.writes.lock().unwrap().is_empty()));
}

#[test]
fn the_access_window_reads_and_writes_the_bar_and_refuses_bad_selections() {
    let (root, recorders) = bus(1);
    let cap = 0x4c;
    assert_eq!(peek(&root, 1, cap), [0x09]);
    poke(&root, 1, cap + 8, &0x1234u32.to_le_bytes());
    poke(&root, 1, cap + 12, &2u32.to_le_bytes());
    assert_eq!(peek(&root, 1, cap + 16), [0x34, 0x34, 0, 0]);
    poke(&root, 1, cap + 16, &[5, 6, 7, 8]);
    assert_eq!(*recorders[0].writes.lock().unwrap(), [(0x1234, vec![5, 6])]);
    for (bar, offset, length) in
        [(1u8, 0u32, 4u32), (0, 1, 2), (0, 0, 3), (0, 0, 0), (0, 0x8000, 4), (0, u32::MAX, 1)]
    {
        poke(&root, 1, cap + 4, &[bar]);
        poke(&root, 1, cap + 8, &offset.to_le_bytes());
        poke(&root, 1, cap + 12, &length.to_le_bytes());
        poke(&root, 1, cap + 16, &[1; 4]);
        peek::<4>(&root, 1, cap + 16);
    }
    assert_eq!(recorders[0].writes.lock().unwrap().len(), 1);
}

#[test]
fn message_control_reaches_the_function_by_any_width() {
    let (root, recorders) = bus(1);
    poke(&root, 1, 0x42, &[0, 0x80]);
    poke(&root, 1, 0x43, &[0xc0]);
    poke(&root, 1, 0x40, &[0, 0, 0, 0]);
    poke(&root, 1, 0x44, &[0xff; 4]);
    assert_eq!(*recorders[0].controls.lock().unwrap(), [0x8001, 0xc001, 0x0001]);
}

#[test]
fn a_thirty_second_function_is_refused() {
    let (mut root, recorders) = bus(31);
    let description =
        Description { config: Config::new(HOST_BRIDGE), bar_size: 0x1000, msix: 0x40, access_window: 0x4c };
    assert!(Arc::get_mut(&mut root).unwrap().add(None, description, recorders[0].clone()).is_err());
}

#[test]
fn a_function_is_in_the_slot_that_it_is_given_and_nobody_else_is() {
    let (mut root, recorders) = bus(1);
    let description = || Description {
        config: Config::new(HOST_BRIDGE),
        bar_size: 0x1000,
        msix: 0x40,
        access_window: 0x4c,
    };
    let add = |root: &mut Arc<Root>, slot: u8| {
        let slot = Some(Slot::try_from(slot).unwrap());
        Arc::get_mut(root).unwrap().add(slot, description(), recorders[0].clone())
    };
    add(&mut root, 9).unwrap();
    assert_eq!(peek::<2>(&root, 9, 0), HOST_BRIDGE.vendor.to_le_bytes());
    assert_eq!(peek::<2>(&root, 2, 0), [0xff; 2]);
    for taken in [1, 9] {
        assert!(add(&mut root, taken).unwrap_err().to_string().contains("each needs its own"));
    }
}

proptest! {
    #[test]
    fn no_sequence_of_accesses_panics(accesses in proptest::collection::vec(
        (0u8..4, any::<u32>(), proptest::collection::vec(any::<u8>(), 1..9)), 1..100)) {
        let (root, _) = bus(3);
        let ports = ConfigPorts::new(root.clone(), Stop::channel().0);
        for (kind, at, mut data) in accesses {
            let at = u64::from(at);
            // Small registers of the three functions often.
            let ecam = if kind == 0 { at & 0x1_ffff } else { at & 0xf_ffff };
            let (device, offset): (&dyn BusDevice, u64) = match kind {
                0 | 1 => (&Ecam(root.clone()), ecam),
                2 => (&ports, at % 8),
                _ => (&Window(root.clone()), at & 0x1fff_fff7),
            };
            device.write(offset, &data);
            device.read(offset, &mut data);
        }
    }
}
