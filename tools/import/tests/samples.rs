//! Configs as they are found in the field, read and put before dom0's own check.

#![allow(clippy::unwrap_used, reason = "only tests")]

use std::path::Path;

use domus_import::{ImportError, Translation, import};
use serde_json::{Value, json};

/// Reads a sample; what it is made into is a config to dom0.
fn sample(text: &str) -> (Value, Translation) {
    let translation = import(text).unwrap();
    let config = serde_json::to_string(&translation.config).unwrap();
    if let Err(error) = dom0::config::parse(Path::new("made.json"), Path::new("/srv"), &config) {
        panic!("{error}: {config}");
    }
    (serde_json::from_str(&config).unwrap(), translation)
}

/// The lines of what is listed, with each one's reason.
fn lost(translation: &Translation) -> Vec<(u32, String)> {
    translation.lost.iter().map(|lost| (lost.line, format!("{}: {}", lost.what, lost.why))).collect()
}

#[track_caller]
fn lists(translation: &Translation, line: u32, parts: &[&str]) {
    let lost = lost(translation);
    let is = |(at, text): &&(u32, String)| *at == line && parts.iter().all(|part| text.contains(part));
    assert!(lost.iter().any(|lost| is(&lost)), "line {line} {parts:?} is not in\n{lost:#?}");
}

#[test]
fn a_guest_of_xl_s_documentation_is_a_config_and_what_is_lost_is_listed_by_line() {
    let (config, translation) = sample(include_str!("samples/xl-guest.cfg"));
    assert_eq!(
        config,
        json!({
            "name": "example.hvm",
            "uuid": "5c1d2e5e-0b4f-4d63-9c0a-1f2e3d4c5b6a",
            "vcpus": 2,
            "memory": "1024MiB",
            "boot": { "kernel": "vmlinuz" },
            "disks": [
                { "id": "xvda", "path": "/dev/vg/guest-volume" },
                { "id": "xvdb", "path": "/srv/a, with=commas.qcow2", "format": "qcow2", "read_only": true },
                { "id": "hdc", "path": "/dev/vg/old" },
                { "id": "hdd", "path": "/root/image.iso", "read_only": true }
            ],
            "nets": [
                {
                    "id": "eth0", "bridge": "br0", "mac": "00:16:3e:01:02:03",
                    "limits": { "transmit_bits": "10000000" }
                },
                { "id": "eth1", "bridge": "xenbr0" }
            ],
            "on_reboot": "destroy",
            "on_crash": "restart"
        })
    );
    lists(&translation, 1, &["no kernel", "no boot loader", "vmlinuz"]);
    lists(&translation, 2, &["type = \"hvm\"", "no firmware"]);
    lists(&translation, 6, &["maxmem", "memory is fixed"]);
    lists(&translation, 11, &["commas.qcow2", "backing"]);
    lists(&translation, 13, &["image.iso", "no CD-ROM"]);
    lists(&translation, 14, &["without a medium"]);
    lists(&translation, 15, &["vnc", "no display"]);
    lists(&translation, 18, &["rename-restart", "\"restart\""]);
    // What is so anyway is not lost: maxvcpus, serial, acpi, the bridge's script.
    assert_eq!(translation.lost.len(), 8, "{:#?}", translation.lost);
}

#[test]
fn a_paravirtual_guest_keeps_its_kernel_and_gets_a_console_that_is_there() {
    let (config, translation) = sample(include_str!("samples/xl-pv.cfg"));
    assert_eq!(config["boot"]["kernel"], "/boot/vmlinuz-6.1");
    assert_eq!(config["boot"]["initrd"], "/boot/initrd.img-6.1");
    assert_eq!(config["boot"]["cmdline"], "root=/dev/xvda1 ro console=ttyS0 quiet panic=5");
    assert_eq!(config["memory"], "512MiB");
    assert_eq!(config["disks"], json!([{ "id": "xvda1", "path": "/srv/pv.qcow2", "format": "qcow2" }]));
    assert_eq!(config["nets"][0]["addresses"], json!(["192.0.2.7", "2001:db8::7"]));
    lists(&translation, 3, &["xvda", "/dev/vda"]);
    lists(&translation, 3, &["console=hvc0", "console=ttyS0"]);
    lists(&translation, 10, &["cpus = […]"]);
}

#[test]
fn a_domain_of_libvirt_s_is_a_config_and_each_element_that_is_lost_is_listed() {
    let (config, translation) = sample(include_str!("samples/libvirt-debian.xml"));
    assert_eq!(
        config,
        json!({
            "name": "debian12",
            "uuid": "0d9f1a8e-3b0f-4a77-8a61-2d4d1a0c7a11",
            "vcpus": 2,
            "memory": "2048MiB",
            "boot": {
                "kernel": "/srv/vmlinuz", "initrd": "/srv/initrd.img", "cmdline": "root=LABEL=root console=ttyS0"
            },
            "disks": [
                {
                    "id": "vda", "path": "/srv/debian12.qcow2", "format": "qcow2",
                    "backing": [{ "path": "/srv/base.img", "format": "raw" }],
                    "serial": "root disk", "queues": 2, "cache": "none", "discard": true,
                    "limits": { "bytes": "52428800", "read_iops": "500" }
                },
                { "id": "vdb", "path": "nbd://[2001:db8::9]:10809/data", "werror": "pause", "rerror": "report" }
            ],
            "nets": [
                {
                    "id": "eth0", "bridge": "br0", "mac": "52:54:00:12:34:56", "link": "down",
                    "limits": { "receive_bits": "8000000:40000000", "transmit_bits": "1024000" }
                },
                { "id": "eth1", "network": "default", "mac": "52:54:00:12:34:57" },
                { "id": "eth2", "user": true, "mac": "52:54:00:12:34:58" }
            ],
            "on_crash": "preserve"
        })
    );
    lists(&translation, 4, &["<metadata>"]);
    lists(&translation, 23, &["host-passthrough", "KVM"]);
    lists(&translation, 33, &["io=\"native\"", "domus-block"]);
    lists(&translation, 47, &["<address", "PCI slots"]);
    lists(&translation, 56, &["cdrom", "without a medium"]);
    lists(&translation, 67, &["burst=\"1024\""]);
    lists(&translation, 75, &["e1000e", "virtio-net"]);
    lists(&translation, 87, &["<channel"]);
    lists(&translation, 90, &["<graphics", "no display"]);
    lists(&translation, 95, &["<rng", "devices[]"]);
}

#[test]
fn a_name_a_number_of_vcpus_and_wires_that_domus_does_not_have_become_ones_that_it_has() {
    let (config, translation) = sample(include_str!("samples/libvirt-uefi.xml"));
    assert_eq!((&config["name"], &config["vcpus"]), (&json!("Fedora-Server--1"), &json!(32)));
    assert_eq!(config["memory"], "4096MiB");
    assert_eq!(config["disks"], json!([{ "id": "sda", "path": "/dev/vg0/fedora" }]));
    assert_eq!(config["nets"][0], json!({ "id": "eth0", "macvtap": "eth0" }));
    assert_eq!(config["nets"][1], json!({ "id": "eth1", "vhost_user_socket": "/run/vhost.sock" }));
    lists(&translation, 3, &["Fedora Server #1", "Fedora-Server--1"]);
    lists(&translation, 5, &["currentMemory"]);
    lists(&translation, 6, &["48", "1 to 32"]);
    lists(&translation, 7, &["firmware"]);
    lists(&translation, 15, &["writethrough"]);
    lists(&translation, 21, &["vepa", "bridge"]);
    lists(&translation, 28, &["<tpm"]);
}

#[test]
fn what_is_neither_is_refused_in_one_line_that_says_where() {
    let refused = |text: &str| import(text).unwrap_err().to_string();
    assert!(
        refused("name = \"a\"\nmemory 5\n").contains("line 2"),
        "{}",
        refused("name = \"a\"\nmemory 5\n")
    );
    assert!(refused("{ \"name\": \"a\" }").contains("line 1"));
    assert!(refused("disk = [ 'a'\n 'b' ]").contains("line 2"));
    assert!(refused("name = 'a\n").contains("not closed"));
    assert!(refused("<domain><name>a</domain>").contains("no XML"));
    assert!(refused("<network/>").contains("<network>"));
    assert!(refused("<!DOCTYPE a [ <!ENTITY b \"c\"> ]><domain/>").contains("no XML"));
    assert!(refused(&"[".repeat(1000)).lines().count() == 1);
    assert!(refused(&format!("a = {}", "[".repeat(1000))).contains("line 1"));
    assert_eq!(import(&" ".repeat(300_000)), Err(ImportError::TooLong));
}

proptest::proptest! {
    #[test]
    fn any_text_ends_in_a_config_or_in_an_error_of_one_line(
        text in "[ -~\n\u{e9}]{0,200}",
        xml in proptest::bool::ANY,
    ) {
        let text = if xml { format!("<domain>{text}</domain>") } else { text };
        match import(&text) {
            Ok(translation) => {
                let printable = |lost: &domus_import::Lost| !lost.what.contains(char::is_control);
                proptest::prop_assert!(translation.lost.iter().all(printable));
            }
            Err(error) => proptest::prop_assert!(!error.to_string().contains('\n')),
        }
    }
}
