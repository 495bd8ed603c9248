use proptest::prelude::*;

use shared_abi::control::{Cache, ImageFormat, OnError};

use super::*;

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
    assert_eq!(config.cmdline, "console=ttyS0");
    assert_eq!(config.disks[0].queues, 1);
    let root = config.disks[0].own().unwrap();
    assert_eq!(root.data, DiskData::Raw("/srv/web1/web1.img".into()));
    assert_eq!((root.read_only, root.serial.as_str(), root.cache), (false, "root", None));
    assert_eq!((root.write_error, root.read_error), (OnError::PauseIfFull, OnError::Report));
    assert_eq!(config.disks[0].on_loss, OnLoss::Stall);
    assert_eq!(config.nets[0].mtu, 1500);
    assert_eq!(config.policy.on_reboot, OnStop::Restart);
}

#[test]
fn a_refusal_names_file_path_value_and_what_would_do() {
    let cases = [
        (r#"{"name":"a","boot":{"kernel":"k"},"vcpu":2}"#, &["vcpu", "vcpus"][..]),
        (r#"{"name":"a","boot":{"kernel":"k"},"vcpus":"two"}"#, &["vcpus: ", "two", "u64"]),
        (r#"{"name":"a","boot":{"kernel":"k"},"vcpus":0}"#, &["vcpus: 0", "1 to 32"]),
        (r#"{"name":"a","boot":{"kernel":"k"},"vcpus":33}"#, &["vcpus: 33", "1 to 32"]),
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
    let root = config.disks[0].own().unwrap();
    let backing = vec![("/srv/base.raw".into(), ImageFormat::Raw)];
    assert_eq!(root.data, DiskData::Qcow2("/srv/web1/web1.qcow2".into(), backing));
    assert_eq!((root.cache, root.block_size, root.discard), (Some(Cache::Writeback), Some(4096), false));
    assert_eq!((root.write_error, root.read_error), (OnError::Pause, OnError::PauseIfFull));
    assert_eq!(root.limits.read.iops.map(|rate| (rate.per_second, rate.burst_seconds)), Some((500, 10)));
    assert_eq!(config.disk_limits.total.bytes.map(|rate| rate.burst), Some(1 << 30));
    assert_eq!(config.disks[0].on_loss, OnLoss::ErrorAfter(30));
    assert!(matches!(&config.disks[1].own().unwrap().data, DiskData::Nbd(uri) if uri.export == "far"));
    assert_eq!(config.disks[1].on_loss, OnLoss::Pause);
}

#[test]
fn a_derived_mac_is_stable_local_and_differs_between_domains_and_nics() {
    let macs = |name: &str| {
        let text = format!(
            r#"{{"name":"{name}","boot":{{"kernel":"k"}},"nets":[{{"id":"a","bridge":"b"}},{{"id":"b","bridge":"b"}}]}}"#
        );
        parsed(&text).unwrap().nets.iter().map(|net| net.mac).collect::<Vec<_>>()
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
