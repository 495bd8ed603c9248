use super::*;
use proptest::prelude::*;
use shared_abi::control::{Cache, ImageFormat, OnError};

use crate::device::block::config::{DiskData, OnLoss};
use crate::device::net::config::NicLink;

fn parsed(text: &str) -> Result<DomainConfig, ConfigError> {
    parse(Path::new("web1.json"), Path::new("/srv/web1"), text)
}

#[test]
fn ten_lines_are_a_domain_and_the_rest_has_defaults() {
    let config = parsed(
        r#"{ "name": "web1", "boot": { "kernel": "vmlinuz" },
             "disks": [ { "id": "root", "path": "web1.img" } ],
             "nets": [ { "id": "eth0", "bridge": "br0" } ] }"#,
    )
    .unwrap();
    assert_eq!((config.vcpus, config.memory), (1, 512 << 20));
    assert_eq!(config.kernel, Path::new("/srv/web1/vmlinuz"));
    assert_eq!((config.cmdline.as_str(), config.cmdline_yields), ("console=ttyS0", true));
    assert_eq!(config.devices.disks[0].queues, 1);
    let root = config.devices.disks[0].own().unwrap();
    assert_eq!(root.data, DiskData::Raw("/srv/web1/web1.img".into()));
    assert_eq!((root.read_only, root.serial.as_str(), root.cache), (false, "root", None));
    assert_eq!((root.write_error, root.read_error), (OnError::PauseIfFull, OnError::Report));
    assert_eq!(config.devices.disks[0].on_loss, OnLoss::Stall);
    assert_eq!(config.devices.nics[0].mtu, 1500);
    assert_eq!(config.policy.on_reboot, OnStop::Restart);
}

#[test]
fn a_refusal_names_file_path_value_and_what_would_do() {
    let nets =
        |nets: &str| -> &str { format!(r#"{{"name":"a","boot":{{"kernel":"k"}},"nets":[{nets}]}}"#).leak() };
    let many_pairs = (0..8).map(|n| format!(r#"{{"id":"n{n}","bridge":"b","queues":31}}"#));
    let many_pairs = nets(&many_pairs.collect::<Vec<_>>().join(","));
    let cases = [
        (r#"{"name":"a","boot":{"kernel":"k"},"vcpu":2}"#, &["vcpu", "vcpus"][..]),
        (r#"{"name":"a","boot":{"kernel":"k"},"vcpus":"two"}"#, &["vcpus: ", "two", "u64"]),
        (r#"{"name":"a","boot":{"kernel":"k"},"vcpus":0}"#, &["vcpus: 0", "1 to 255"]),
        (r#"{"name":"a","boot":{"kernel":"k"},"vcpus":256}"#, &["vcpus: 256", "1 to 255"]),
        (r#"{"name":"a","boot":{"kernel":"k"},"cpu":"x86-64-v5"}"#, &["cpu: ", "\"x86-64-v4\"", "`disable`"]),
        (r#"{"name":"a","boot":{"kernel":"k"},"cpu":{"models":"host"}}"#, &["cpu: ", "`model`"]),
        (
            r#"{"name":"a","boot":{"kernel":"k"},"cpu":{"require":["aes","avx9"]}}"#,
            &["cpu.require[1]: ", "\"avx9\"", "/proc/cpuinfo"],
        ),
        (
            r#"{"name":"a","boot":{"kernel":"k"},"cpu":{"disable":["svm"]}}"#,
            &["cpu.disable[0]: ", "\"svm\"", "\"nested\""],
        ),
        (
            r#"{"name":"a","boot":{"kernel":"k"},"cpu":{"require":["aes"],"disable":["rtm","aes"]}}"#,
            &["cpu.disable[1]: ", "\"aes\"", "cpu.require"],
        ),
        (r#"{"name":"a","boot":{"kernel":"k"},"nested":"yes"}"#, &["nested: ", "boolean"]),
        (r#"{"name":"a/b","boot":{"kernel":"k"}}"#, &["name: ", "a/b", "1 to 48"]),
        (r#"{"name":"Domain-0","boot":{"kernel":"k"}}"#, &["name: \"Domain-0\"", "the host"]),
        (r#"{"name":"17","boot":{"kernel":"k"}}"#, &["name: \"17\"", "ID"]),
        (r#"{"name":"a","boot":{"kernel":"k"},"memory":"1GB"}"#, &["memory: ", "1GB", "512MiB"]),
        (r#"{"name":"a","boot":{"kernel":"k"},"memory":1}"#, &["memory: 1MiB", "16MiB"]),
        (r#"{"name":"a","boot":{"kernel":""}}"#, &["boot.kernel: \"\""]),
        (r#"{"name":"a","boot":{}}"#, &["boot: ", "kernel"]),
        (r#"{"name":"a"}"#, &["boot"]),
        (r#"{"name":"a","boot":{"kernel":"k"},"disks":[{"id":"a"}]}"#, &["disks[0].path: is missing"]),
        (
            r#"{"name":"a","boot":{"kernel":"k"},"disks":[{"id":"a","path":"x","formt":"raw"}]}"#,
            &["disks[0].formt", "format"],
        ),
        (
            r#"{"name":"a","boot":{"kernel":"k"},"disks":[{"id":"a","path":"x","format":"vmdk"}]}"#,
            &["disks[0].format: ", "vmdk", "raw"],
        ),
        (
            r#"{"name":"a","boot":{"kernel":"k"},"disks":[{"id":"a","path":"x","backing":[{"path":"y","format":"raw"}]}]}"#,
            &["disks[0].backing: ", "qcow2"],
        ),
        (
            r#"{"name":"a","boot":{"kernel":"k"},"disks":[{"id":"a","path":"x","format":"qcow2","backing":[{"path":"y"}]}]}"#,
            &["disks[0].backing[0]: ", "format"],
        ),
        (
            r#"{"name":"a","boot":{"kernel":"k"},"disks":[{"id":"a","path":"x","block_size":1024}]}"#,
            &["disks[0].block_size: 1024", "4096"],
        ),
        (
            r#"{"name":"a","boot":{"kernel":"k"},"disks":[{"id":"a","path":"x","limits":{"iops":"fast"}}]}"#,
            &["disks[0].limits.iops: ", "fast", "50MiB"],
        ),
        (
            r#"{"name":"a","boot":{"kernel":"k"},"disks":[{"id":"a","path":"nbd://h:x"}]}"#,
            &["disks[0].path: ", "nbd://h:x", "HOST[:PORT]"],
        ),
        (
            r#"{"name":"a","boot":{"kernel":"k"},"disks":[{"id":"a","path":"nbd://h","cache":"none"}]}"#,
            &["disks[0].cache: ", "server"],
        ),
        (
            r#"{"name":"a","boot":{"kernel":"k"},"disks":[{"id":"a","vhost_user_socket":"s","werror":"pause"}]}"#,
            &["disks[0].werror: ", "leave it out"],
        ),
        (
            r#"{"name":"a","boot":{"kernel":"k"},"disks":[{"id":"a","vhost_user_socket":"s","on_backend_loss":{"error_after":3}}]}"#,
            &["disks[0].on_backend_loss: ", "stall"],
        ),
        (
            r#"{"name":"a","boot":{"kernel":"k"},"disks":[{"id":"a","path":"x"}],"nets":[{"id":"a","tap":"t"}]}"#,
            &["nets[0].id: ", "\"a\"", "disks[0].id"],
        ),
        (
            r#"{"name":"a","boot":{"kernel":"k"},"nets":[{"id":"n","bridge":"a very long name!"}]}"#,
            &["nets[0].bridge: ", "a very", "15"],
        ),
        (
            r#"{"name":"a","boot":{"kernel":"k"},"nets":[{"id":"n","tap":"t","mac":"ff:ff:ff:ff:ff:ff"}]}"#,
            &["nets[0].mac: ", "ff:ff", "unicast"],
        ),
        (r#"{"name":"a","boot":{"kernel":"k"},"uuid":"web1"}"#, &["uuid: ", "web1", "5c1d2e5e-"]),
        (nets(r#"{"id":"n","bridge":"b","tap":"t"}"#), &["nets[0].tap: ", "excludes bridge"]),
        (nets(r#"{"id":"n","switch":"s","user":true}"#), &["nets[0].user: ", "excludes switch"]),
        (nets(r#"{"id":"n","user":false}"#), &["nets[0].user: ", "\"down\""]),
        (
            nets(r#"{"id":"n","user":{"ports":["tcp:80"]}}"#),
            &["nets[0].user.ports[0]: ", "tcp:80", "8080:80"],
        ),
        (
            nets(r#"{"id":"n","user":{"ports":["tcp:80:80","tcp:127.0.0.1:80:81"]}}"#),
            &["nets[0].user.ports[1]: ", "ports[0]"],
        ),
        (nets(r#"{"id":"n","user":{"port":[]}}"#), &["nets[0]"]),
        (nets(r#"{"id":"n","network":"a.b"}"#), &["nets[0].network: ", "a.b", "1 to 15"]),
        (nets(r#"{"id":"n","switch":"a very long name!"}"#), &["nets[0].switch: ", "1 to 15"]),
        (nets(r#"{"id":"n","queues":2}"#), &["nets[0].queues: 2", "user", "one queue pair"]),
        (nets(r#"{"id":"n","bridge":"b","queues":32}"#), &["nets[0].queues: 32", "1 to 31"]),
        (nets(r#"{"id":"n","mtu":65521}"#), &["nets[0].mtu: 65521", "65520"]),
        (nets(r#"{"id":"n","mtu":67}"#), &["nets[0].mtu: 67", "68 to 65535"]),
        (nets(r#"{"id":"n","addresses":[]}"#), &["nets[0].addresses: ", "1 to 32"]),
        (
            nets(r#"{"id":"n","addresses":["10.0.0.1/33"]}"#),
            &["nets[0].addresses[0]: ", "10.0.0.1/33", "10.0.0.8/29"],
        ),
        (
            nets(r#"{"id":"n","limits":{"receive_bits":"fast"}}"#),
            &["nets[0].limits.receive_bits: ", "fast", "100M"],
        ),
        (nets(r#"{"id":"n","link":"on"}"#), &["nets[0].link: ", "on", "up", "down"]),
        (nets(r#"{"id":"n","vhost_user_socket":"s","spoof":true}"#), &["nets[0].spoof: ", "leave it out"]),
        (nets(r#"{"id":"n","bridge":"v*"}"#), &["nets[0].bridge: ", "v*", "without / : % *"]),
        (nets(r#"{"id":"n","isolated":true}"#), &["nets[0].isolated: ", "bridge or a network", "user"]),
        (nets(r#"{"id":"n","vhost_user_socket":"s","router":true}"#), &["nets[0].router: ", "leave it out"]),
        (
            nets(r#"{"id":"n","mac":"52:54:00:00:00:01"},{"id":"m","mac":"52:54:00:00:00:01"}"#),
            &["nets[1].mac: 52:54:00:00:00:01", "nets[0]"],
        ),
        (many_pairs, &["nets: need ", "253", "fewer queues"]),
        (r#"{"name":"a","boot":{"kernel":"k"},"on_crash":"reboot"}"#, &["on_crash: ", "reboot", "preserve"]),
        (r#"{"name":"a","boot":{"kernel":"k"}} x"#, &["trailing"]),
        ("", &["EOF"]),
        ("[]", &["DomainFile"]),
    ];
    for (text, parts) in cases {
        let error = parsed(text).unwrap_err().to_string();
        assert!(error.starts_with("web1.json: "), "{error}");
        assert!(!error.contains('\n'), "{error}");
        for part in parts {
            assert!(error.contains(part), "{text}\n  gave  {error}\n  which lacks {part}");
        }
    }
}

#[test]
fn a_disk_says_format_backing_cache_errors_and_limits() {
    let config = parsed(
        r#"{ "name": "web1", "boot": { "kernel": "vmlinuz" }, "disk_limits": { "bytes": "1GiB" }, "disks": [
             { "id": "root", "path": "web1.qcow2", "format": "qcow2", "cache": "writeback", "block_size": 4096,
               "backing": [ { "path": "/srv/base.raw", "format": "raw" } ], "discard": false,
               "werror": "pause", "rerror": "pause-if-full", "limits": { "read_iops": "500:2000:10" },
               "on_backend_loss": { "error_after": 30 } },
             { "id": "far", "path": "nbd://store.example/far", "on_backend_loss": "pause" } ] }"#,
    )
    .unwrap();
    let root = config.devices.disks[0].own().unwrap();
    let backing = vec![("/srv/base.raw".into(), ImageFormat::Raw)];
    assert_eq!(root.data, DiskData::Qcow2("/srv/web1/web1.qcow2".into(), backing));
    assert_eq!((root.cache, root.block_size, root.discard), (Some(Cache::Writeback), Some(4096), false));
    assert_eq!((root.write_error, root.read_error), (OnError::Pause, OnError::PauseIfFull));
    assert_eq!(root.limits.read.iops.map(|rate| (rate.per_second, rate.burst_seconds)), Some((500, 10)));
    assert_eq!(config.devices.disk_limits.total.bytes.map(|rate| rate.burst), Some(1 << 30));
    assert_eq!(config.devices.disks[0].on_loss, OnLoss::ErrorAfter(30));
    assert!(
        matches!(&config.devices.disks[1].own().unwrap().data, DiskData::Nbd(uri) if uri.export == "far")
    );
    assert_eq!(config.devices.disks[1].on_loss, OnLoss::Pause);
}

#[test]
fn a_nic_says_its_wire_filter_limits_and_link() {
    let config = parsed(
        r#"{ "name": "web1", "boot": { "kernel": "vmlinuz" }, "vcpus": 8, "nets": [
             { "id": "a", "user": { "ports": [ "tcp:8080:80", "udp:127.0.0.1:5353:53" ] } },
             { "id": "b", "network": "lan", "addresses": [ "10.0.0.8/29", "fd00::1" ], "link": "down" },
             { "id": "c", "macvtap": "eth0", "queues": 3, "spoof": true },
             { "id": "d", "switch": "fast", "limits": { "receive_bits": "100M", "transmit_packets": 9 } },
             { "id": "e", "vhost_user_socket": "ovs.sock", "mtu": 9000 },
             { "id": "f" } ] }"#,
    )
    .unwrap();
    let [a, b, c, d, e, f] = &config.devices.nics[..] else { panic!("{:?}", config.devices.nics) };
    assert!(matches!(&a.link, NicLink::User(ports) if ports[1].to_string() == "udp:127.0.0.1:5353:53"));
    assert_eq!((a.pairs, a.mtu, a.up, a.filter.any_mac), (1, 65520, true, false));
    assert_eq!((b.link.key(), b.pairs, b.mtu, b.up), ("network", 4, 1500, false));
    assert_eq!(b.filter.addresses.as_ref().unwrap().len(), 2);
    assert_eq!((c.link.clone(), c.pairs, c.filter.any_mac), (NicLink::Macvtap("eth0".into()), 3, true));
    assert_eq!(d.limits.receive.bits.unwrap().per_second, 100_000_000);
    assert_eq!((d.limits.transmit.packets.unwrap().per_second, d.pairs, d.virtqueues(1)), (9, 1, 2));
    assert_eq!((e.link.clone(), e.mtu), (NicLink::VhostUser("/srv/web1/ovs.sock".into()), 9000));
    assert_eq!(f.link, NicLink::User(vec![]));
    // Whoever may have any MAC address is trusted with the rest, unless that is said.
    let may = |nic: &crate::device::net::config::Nic| (nic.filter.tags, nic.filter.router);
    assert_eq!([a, b, c].map(may), [(false, false), (false, false), (true, true)]);
    let config = parsed(
        r#"{ "name": "web1", "boot": { "kernel": "vmlinuz" }, "nets": [
             { "id": "a", "bridge": "br0", "tagged": true, "router": true, "isolated": true },
             { "id": "b", "bridge": "br0", "spoof": true, "tagged": false, "addresses": [ "10.0.0.1" ] } ] }"#,
    )
    .unwrap();
    let [a, b] = &config.devices.nics[..] else { panic!("{:?}", config.devices.nics) };
    assert_eq!((may(a), a.isolated, may(b), b.isolated), ((true, true), true, (false, false), false));
}

#[test]
fn a_uuid_is_made_from_the_name_unless_it_is_given() {
    let uuid = |more: &str| {
        let text = format!(r#"{{"name":"web1","boot":{{"kernel":"k"}}{more}}}"#);
        parsed(&text).unwrap().uuid.to_string()
    };
    // Written down: what a guest has seen once must stay.
    assert_eq!(uuid(""), "fafebb8b-9c7b-51cd-b4d9-953374817c5f");
    let given = "5c1d2e5e-0b4f-4d63-9c0a-1f2e3d4c5b6a";
    assert_eq!(uuid(&format!(r#","uuid":"{given}""#)), given);
}

#[test]
fn a_derived_mac_is_stable_local_and_differs_between_domains_and_nics() {
    let macs = |name: &str| {
        let text = format!(
            r#"{{"name":"{name}","boot":{{"kernel":"k"}},"nets":[{{"id":"a","bridge":"b"}},{{"id":"b","bridge":"b"}}]}}"#
        );
        parsed(&text).unwrap().devices.nics.iter().map(|net| net.mac).collect::<Vec<_>>()
    };
    assert_eq!(macs("web1"), macs("web1"));
    let mut seen = std::collections::HashSet::new();
    for n in 0..500 {
        for mac in macs(&format!("web{n}")) {
            assert_eq!(mac.bytes()[0] & 3, 2, "{mac}");
            assert!(seen.insert(mac), "{mac} twice");
        }
    }
}

#[test]
fn the_schema_in_the_tree_is_the_one_of_the_types() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/schema/domain.schema.json");
    let schema = serde_json::to_string_pretty(&schemars::schema_for!(DomainFile)).unwrap() + "\n";
    if std::env::var_os("DOMUS_UPDATE_SCHEMA").is_some() {
        std::fs::write(path, &schema).unwrap();
    }
    let kept = std::fs::read_to_string(path).unwrap_or_default();
    assert!(kept == schema, "{path} is out of date: run this test with DOMUS_UPDATE_SCHEMA=1");
}

proptest! {
    #[test]
    fn no_text_makes_the_parser_panic_or_answer_in_two_lines(text in "\\PC*") {
        if let Err(error) = parsed(&text) {
            prop_assert!(!error.to_string().contains('\n'));
        }
    }

    #[test]
    fn any_number_of_vcpus_is_taken_or_refused_by_name(vcpus in any::<i64>()) {
        let result = parsed(&format!(r#"{{"name":"a","boot":{{"kernel":"k"}},"vcpus":{vcpus}}}"#));
        match result {
            Ok(config) => prop_assert_eq!(i64::from(config.vcpus), vcpus),
            Err(error) => prop_assert!(error.at == "vcpus" && !(1..=32).contains(&vcpus)),
        }
    }
}
