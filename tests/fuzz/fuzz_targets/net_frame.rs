//! A frame as a guest sends it, with any header: what passes the checks of header and filter claims nothing that is not
//! its sender's, and cutting it or filling in its checksum ends, stays within bounds and loses no payload.
#![no_main]

use domus_net::features;
use domus_net::filter::{Filter, HEAD};
use domus_net::header::{self, LEN, MAX_FRAME};
use domus_net::offload::{self, Cut, MAX_SEGMENTS};
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use shared_abi::MacAddress;
use shared_abi::control::{AddressRange, NicFilter};

#[path = "../../../backends/net/src/filter/reference.rs"]
mod reference;

const MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    any_mac: bool,
    tags: bool,
    router: bool,
    /// Lists of one prefix each, if any.
    addresses: Option<([u8; 4], u8, [u8; 16], u8)>,
    features: u64,
    header: [u8; LEN],
    /// The frame is of an Ethernet type that is looked into, and from the guest's MAC address.
    kind: Option<u8>,
    /// More bytes behind those given.
    padding: u16,
    frame: &'a [u8],
}

fn rules(input: &Input<'_>) -> NicFilter {
    let addresses = input.addresses.map(|(v4, prefix4, v6, prefix6)| {
        vec![
            AddressRange { address: v4.into(), prefix: prefix4 % 33 },
            AddressRange { address: v6.into(), prefix: prefix6 % 129 },
        ]
    });
    NicFilter {
        any_mac: input.any_mac,
        addresses,
        tags: input.tags,
        router: input.router,
        ..NicFilter::default()
    }
}

fn frame(input: &Input<'_>) -> Vec<u8> {
    let mut frame = input.frame.to_vec();
    if let (Some(kind), Some(start)) = (input.kind, frame.get_mut(6..14)) {
        start[..6].copy_from_slice(&MAC);
        let kinds: [u16; 5] = [0x0800, 0x86dd, 0x0806, 0x8100, 0x88a8];
        start[6..].copy_from_slice(&kinds[usize::from(kind) % kinds.len()].to_be_bytes());
    }
    frame.resize(frame.len() + usize::from(input.padding), 0);
    frame
}

fuzz_target!(|input: Input<'_>| {
    let (rules, frame) = (rules(&input), frame(&input));
    let len = frame.len() as u64;
    let filter = Filter::new(MacAddress::new(MAC).expect("a unicast address"), &rules);
    let judge = |header: &[u8; LEN], frame: &[u8]| {
        filter.check(header, &frame[..frame.len().min(HEAD)], frame.len() as u64)
    };
    if judge(&[0; LEN], &frame).is_ok() {
        reference::claims_only_its_own(&frame, MAC, &rules);
    }
    let Ok(header) = header::check(input.header, len, input.features) else { return };
    let passes = judge(&header, &frame).is_ok();
    assert!((14..=MAX_FRAME).contains(&len));
    let mut filled = frame.clone();
    let _ = offload::fill(&header, &mut filled);
    assert_eq!(filled.len(), frame.len());
    assert!(
        filled.iter().zip(&frame).filter(|(new, old)| new != old).count() <= 2,
        "more than a checksum has changed"
    );
    if passes {
        assert_eq!(judge(&[0; LEN], &filled), Ok(()), "the checksum has changed what was judged");
    }
    let Ok(cut) = Cut::new(&header, &frame) else { return };
    assert!(header[1] != 0 && input.features & features::CSUM != 0 && cut.segments() <= MAX_SEGMENTS);
    let size = usize::from(u16::from_le_bytes([header[4], header[5]]));
    let (mut piece, mut payload) = (Vec::new(), Vec::new());
    for number in 0..cut.segments() {
        cut.segment(number, &mut piece);
        assert!(piece.len() <= cut.longest() && piece.len() <= frame.len());
        let headers = cut.longest() - size.min(cut.longest());
        assert!(!passes || judge(&[0; LEN], &piece).is_ok(), "a piece that would not pass");
        payload.extend_from_slice(&piece[headers.min(piece.len())..]);
    }
    if cut.segments() > 1 {
        assert!(frame.ends_with(&payload), "the payload is another");
    }
});
