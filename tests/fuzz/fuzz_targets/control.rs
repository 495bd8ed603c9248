//! Control messages: whatever the bytes, decoding them ends in a message or an error; a message that is
//! accepted survives being written and read again.
#![no_main]

use domus_startup::link::decode_request;
use libfuzzer_sys::fuzz_target;
use serde::Serialize;
use serde::de::DeserializeOwned;
use shared_abi::control::{BlockRequest, ConsoleRequest, NetRequest, Request, RunnerRequest, SwitchRequest, VERSION};

fn check<R: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(bytes: &[u8]) {
    if let Ok(request) = decode_request::<R>(bytes, VERSION) {
        let again = serde_json::to_vec(&Request { version: VERSION, request: &request }).expect("a message is JSON");
        assert_eq!(decode_request::<R>(&again, VERSION).expect("what we write we read"), request);
    }
}

fuzz_target!(|bytes: &[u8]| {
    check::<RunnerRequest>(bytes);
    check::<BlockRequest>(bytes);
    check::<NetRequest>(bytes);
    check::<SwitchRequest>(bytes);
    check::<ConsoleRequest>(bytes);
});
