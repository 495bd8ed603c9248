use proptest::prelude::*;

use super::*;

const MAC: [u8; 6] = [0x52, 0x54, 0, 0, 0, 1];

fn rights() -> Rights {
    Rights { features: u64::MAX, pairs: 4, mac: Some(MacAddress::new(MAC).unwrap()) }
}

fn table(unicast: usize, multicast: usize) -> Vec<u8> {
    let mut bytes = vec![1, 0];
    for count in [unicast, multicast] {
        bytes.extend((count as u32).to_le_bytes());
        bytes.extend([2, 0, 0, 0, 0, 9].repeat(count));
    }
    bytes
}

/// Types, entries, queue pair of all of them, transmit queues, bytes of key.
fn rss(types: u32, entries: u16, pair: u16, transmitting: u16, key: u8) -> Vec<u8> {
    let mut bytes = vec![4, 1];
    bytes.extend(types.to_le_bytes());
    bytes.extend(entries.wrapping_sub(1).to_le_bytes());
    bytes.extend(0_u16.to_le_bytes());
    (0..entries).for_each(|_| bytes.extend(pair.to_le_bytes()));
    bytes.extend(transmitting.to_le_bytes());
    bytes.push(key);
    bytes.extend(vec![7; key.into()]);
    bytes
}

/// Proper commands, each with the feature that it needs.
fn proper() -> Vec<(u64, Vec<u8>)> {
    let mut commands = vec![
        (features::CTRL_RX, vec![0, 0, 1]),
        (features::CTRL_RX, vec![0, 1, 0]),
        (features::CTRL_RX, table(0, 0)),
        (features::CTRL_RX, table(3, 64)),
        (features::CTRL_RX, table(1000, 1)),
        (features::CTRL_MAC_ADDR, [&[1, 1][..], &MAC].concat()),
        (features::CTRL_VLAN, vec![2, 0, 0xff, 0x0f]),
        (features::CTRL_VLAN, vec![2, 1, 1, 0]),
        (features::GUEST_ANNOUNCE, vec![3, 0]),
        (features::MQ, vec![4, 0, 4, 0]),
        (features::RSS, rss(0x3f, 128, 3, 2, 40)),
        (features::RSS, rss(0, 1, 0, 4, 0)),
        (features::CTRL_GUEST_OFFLOADS, [&[5, 0][..], &features::TAKEN.to_le_bytes()].concat()),
    ];
    commands.extend((2..6).map(|number| (features::CTRL_RX_EXTRA, vec![0, number, 1])));
    commands
}

#[test]
fn a_proper_command_is_obeyed_and_refused_without_its_feature_and_with_a_byte_more_or_less() {
    let settings = Settings::default();
    for (feature, command) in proper() {
        let told = format!("{:?}", &command[..command.len().min(12)]);
        assert!(obey(&settings, rights(), &command).is_ok(), "{told}");
        let without = Rights { features: !feature, ..rights() };
        assert_eq!(obey(&settings, without, &command), Err(Refused), "{told}");
        let longer = [&command[..], &[0]].concat();
        assert_eq!(obey(&settings, rights(), &longer), Err(Refused), "{told}");
        for length in 0..command.len() {
            assert_eq!(obey(&settings, rights(), &command[..length]), Err(Refused), "{told} {length}");
        }
    }
}

#[test]
fn values_out_of_range_are_refused() {
    let none = Rights { features: features::CTRL_GUEST_OFFLOADS, ..rights() };
    let taken = [&[5, 0][..], &features::GUEST_CSUM.to_le_bytes()].concat();
    assert_eq!(obey(&Settings::default(), none, &taken), Err(Refused), "an offload not settled on");
    let cases: [&[u8]; 15] = [
        &[0, 0, 2],
        &[0, 6, 1],
        &[1, 2, 0],
        &[1, 0, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0],
        &[1, 1, 0x52, 0x54, 0, 0, 0, 2],
        &[1, 1, 0x53, 0x54, 0, 0, 0, 1],
        &[1, 1, 0, 0, 0, 0, 0, 0],
        &[2, 0, 0, 0x10],
        &[2, 2, 0, 0],
        &[3, 1],
        &[4, 0, 0, 0],
        &[4, 0, 5, 0],
        &[4, 2, 0, 0],
        &[5, 0, 0, 0x80, 0, 0, 0, 0, 0, 0],
        &[6, 0],
    ];
    let hashings = [
        rss(0x40, 1, 0, 1, 0),
        rss(1, 3, 0, 1, 0),
        rss(1, 256, 0, 1, 0),
        rss(1, 1, 4, 1, 0),
        rss(1, 1, 0xffff, 1, 0),
        rss(1, 1, 0, 0, 0),
        rss(1, 1, 0, 5, 0),
        rss(1, 1, 0, 1, 41),
    ];
    for command in cases.into_iter().chain(hashings.iter().map(Vec::as_slice)) {
        let told = &command[..command.len().min(16)];
        assert_eq!(obey(&Settings::default(), rights(), command), Err(Refused), "{told:?}");
    }
}

#[test]
fn a_nic_that_may_have_any_address_takes_any_that_can_be_one() {
    let any = Rights { mac: None, ..rights() };
    let set = |address: [u8; 6]| obey(&Settings::default(), any, &[&[1, 1][..], &address].concat());
    assert_eq!(set([2, 0, 0, 0, 0, 7]).unwrap().mac.unwrap().bytes(), [2, 0, 0, 0, 0, 7]);
    assert_eq!(set([3, 0, 0, 0, 0, 7]), Err(Refused));
    assert_eq!(set([0; 6]), Err(Refused));
}

#[test]
fn the_number_of_pairs_follows_both_commands_and_the_last_one_counts() {
    let hashed = obey(&Settings::default(), rights(), &rss(1, 2, 2, 1, 40)).unwrap();
    assert_eq!((hashed.pairs, hashed.rules(3).table), (3, vec![2, 2]));
    let even = obey(&hashed, rights(), &[4, 0, 2, 0]).unwrap();
    assert_eq!((even.pairs, even.rules(2).table[..4].to_vec()), (2, vec![0, 1, 0, 1]));
}

proptest! {
    #[test]
    fn whatever_a_command_says_the_settings_are_sound(
        proper in 0_usize..17,
        features: u64,
        pairs in 1_u16..32,
        changes in proptest::collection::vec((0_usize..80, any::<u8>()), 0..6),
    ) {
        let mut command = super::tests::proper()[proper].1.clone();
        for (at, byte) in changes {
            if let Some(place) = command.get_mut(at) {
                *place = byte;
            }
        }
        let mut settings = Settings::default();
        for features in [features, u64::MAX] {
            if let Ok(new) = obey(&settings, Rights { features, pairs, mac: None }, &command) {
                settings = new;
            }
            prop_assert!(settings.sound(pairs));
        }
    }
}
