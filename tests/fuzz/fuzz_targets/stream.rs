//! Frames on a stream: in whatever pieces the bytes come, they are the same frames, there is always room for the rest
//! of one, and a length that no frame has ends it.
#![no_main]

use domus_net::header::MAX_FRAME;
use domus_net::stream::{Decoder, LengthError, PREFIX};
use libfuzzer_sys::fuzz_target;

/// The frames in `bytes` that come in pieces of these sizes, again and again, and how it ended.
fn decode(bytes: &[u8], pieces: &[u16]) -> (Vec<Vec<u8>>, Option<LengthError>) {
    let mut decoder = Decoder::default();
    let (mut frames, mut left, mut sizes) = (Vec::new(), bytes, pieces.iter().cycle());
    loop {
        loop {
            match decoder.frame() {
                Ok(Some(frame)) => frames.push(frame.to_vec()),
                Ok(None) => break,
                Err(error) => {
                    assert_eq!(decoder.frame(), Err(error), "a stream that is over goes on");
                    return (frames, Some(error));
                }
            }
        }
        if left.is_empty() {
            return (frames, None);
        }
        let room = decoder.room();
        assert!(!room.is_empty(), "no room for the rest of a frame");
        let size = usize::from(sizes.next().copied().unwrap_or(u16::MAX)).max(1);
        let (now, later) = left.split_at(size.min(room.len()).min(left.len()));
        room[..now.len()].copy_from_slice(now);
        decoder.received(now.len());
        left = later;
    }
}

fuzz_target!(|input: (Vec<u16>, Vec<u16>, &[u8])| {
    let (lengths, pieces, rubbish) = input;
    // Some frames of any length, then anything.
    let mut bytes = Vec::new();
    for length in lengths.iter().take(8) {
        let length = u32::from(*length).max(1);
        bytes.extend(length.to_be_bytes());
        bytes.extend((0..length).map(|n| n as u8));
    }
    bytes.extend(rubbish);
    let whole = decode(&bytes, &[]);
    assert_eq!(decode(&bytes, &pieces), whole);
    let taken: usize = whole.0.iter().map(|frame| PREFIX + frame.len()).sum();
    assert!(whole.0.iter().all(|frame| !frame.is_empty() && frame.len() as u64 <= MAX_FRAME));
    assert!(taken <= bytes.len());
    if let Some(LengthError(length)) = whole.1 {
        assert!(length == 0 || u64::from(length) > MAX_FRAME);
        assert_eq!(bytes[taken..taken + PREFIX], length.to_be_bytes());
    }
});
