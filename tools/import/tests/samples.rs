//! Configs as they are found in the field, read and put before dom0's own check.

#![allow(clippy::unwrap_used, reason = "only tests")]

use std::path::Path;

use domus_import::{ImportError, Translation, import, import_bytes};
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
                    "id": "eth0", "bridge": "br0", "mac": "52:54:00:12:34:56", "link": "down", "isolated": true,
                    "limits": { "receive_bits": "8000000:40000000", "transmit_bits": "1024000" }
                },
                { "id": "eth1", "network": "default", "mac": "52:54:00:12:34:57" },
                { "id": "eth2", "user": true, "mac": "52:54:00:12:34:58" }
            ],
            "on_crash": "preserve"
        })
    );
    lists(&translation, 4, &["<metadata>"]);
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
    assert_eq!((&config["name"], &config["vcpus"]), (&json!("Fedora-Server--1"), &json!(2)));
    assert_eq!(config["memory"], "4096MiB");
    assert_eq!(config["disks"], json!([{ "id": "sda", "path": "/dev/vg0/fedora" }]));
    assert_eq!(config["nets"][0], json!({ "id": "eth0", "macvtap": "eth0" }));
    assert_eq!(config["nets"][1], json!({ "id": "eth1", "vhost_user_socket": "/run/vhost.sock" }));
    lists(&translation, 3, &["Fedora Server #1", "Fedora-Server--1"]);
    lists(&translation, 5, &["currentMemory"]);
    lists(&translation, 6, &["48", "number of vCPUs is fixed"]);
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

/// The same guest, as both say it.
fn both(
    kernel: &str,
    memory: (&str, &str, &str),
    vcpus: (&str, &str),
    cmdline: &str,
) -> [(Value, Translation); 2] {
    let (unit, libvirt, xl) = memory;
    let (now, most) = vcpus;
    [
        sample(&format!(
            "name = 'a'\nkernel = '{kernel}'\nmemory = '{xl}'\nvcpus = {now}\nmaxvcpus = {most}\nextra = '{cmdline}'\n"
        )),
        sample(&format!(
            "<domain><name>a</name>\n<os><kernel>{kernel}</kernel>\n<cmdline>{cmdline}</cmdline></os>\n\
             <memory unit='{unit}'>{libvirt}</memory>\n<vcpu current='{now}'>{most}</vcpu>\n</domain>"
        )),
    ]
}

#[track_caller]
fn says(translation: &Translation, parts: &[&str]) {
    let lost = lost(translation);
    let is = |(_, text): &(u32, String)| parts.iter().all(|part| text.contains(part));
    assert!(lost.iter().any(is), "{parts:?} is not in\n{lost:#?}");
}

#[test]
fn an_amount_of_memory_is_the_same_whatever_the_case_of_its_unit() {
    for (unit, libvirt, xl, mib) in [
        ("KiB", "2097152", "2048", 2048),
        ("kib", "2097152", "2048MiB", 2048),
        ("Gib", "2", "2g", 2048),
        ("GIB", "2", "2 GiB", 2048),
        ("g", "2", "0x800", 2048),
        ("gb", "1", "1GB", 954),
        ("MB", "512", "512mb", 489),
        ("", "1048576", "1024", 1024),
        ("BYTES", "1073741824", "1073741824b", 1024),
    ] {
        for (config, _) in both("k", (unit, libvirt, xl), ("1", "1"), "") {
            assert_eq!(config["memory"], format!("{mib}MiB"), "{unit} {xl}");
        }
    }
    let (_, translation) =
        sample("<domain><memory unit='furlong'>2</memory><os><kernel>k</kernel></os></domain>");
    says(&translation, &["furlong", "no amount of memory"]);
    let (config, translation) = sample("kernel = 'k'\nmemory = '2 furlongs'\n");
    assert_eq!(config["memory"], "512MiB");
    says(&translation, &["furlongs", "no amount of memory"]);
    let (config, _) = sample("kernel = 'k'\nmaxmem = 256\n");
    assert_eq!(config["memory"], "256MiB");
}

#[test]
fn a_guest_has_the_vcpus_that_it_starts_with_and_that_it_could_have_more_is_told() {
    for (config, translation) in both("k", ("M", "64", "64"), ("2", "16"), "") {
        assert_eq!(config["vcpus"], 2);
        says(&translation, &["16", "number of vCPUs is fixed"]);
    }
    for (config, translation) in both("k", ("M", "64", "64"), ("3", "3"), "") {
        assert_eq!(config["vcpus"], 3);
        assert_eq!(translation.lost, []);
    }
}

#[test]
fn the_kernels_command_line_has_the_console_that_there_is_and_its_root_is_looked_at() {
    for (given, made, told) in [
        ("ip=dhcp", "ip=dhcp console=ttyS0", None),
        ("console=hvc0 quiet", "console=ttyS0 quiet", Some("console=hvc0")),
        ("console=tty0 console=ttyS1,115200n8", "console=tty0 console=ttyS0", Some("console=ttyS1")),
        ("console=xvc0 console=hvc0", "console=ttyS0", Some("console=hvc0")),
        ("console=ttyS0,115200 a", "console=ttyS0,115200 a", None),
        ("root=/dev/sda1 ro", "root=/dev/sda1 ro console=ttyS0", Some("/dev/vda")),
        ("root=/dev/xvda", "root=/dev/xvda console=ttyS0", Some("/dev/vda")),
        ("root=/dev/nvme0n1p2", "root=/dev/nvme0n1p2 console=ttyS0", Some("/dev/vda")),
        ("root=/dev/disk/by-id/x", "root=/dev/disk/by-id/x console=ttyS0", Some("/dev/vda")),
        ("root=202:1 resume=/dev/hda5", "root=202:1 resume=/dev/hda5 console=ttyS0", Some("resume=")),
        ("root=UUID=a", "root=UUID=a console=ttyS0", None),
        ("root=/dev/vda1", "root=/dev/vda1 console=ttyS0", None),
        ("root=/dev/mapper/vg-root", "root=/dev/mapper/vg-root console=ttyS0", None),
    ] {
        for (config, translation) in both("k", ("M", "64", "64"), ("1", "1"), given) {
            assert_eq!(config["boot"]["cmdline"], made);
            match told {
                Some(told) => says(&translation, &[told]),
                None => assert_eq!(translation.lost, [], "{given}"),
            }
        }
    }
    let (config, translation) = sample("kernel = 'k'\nmemory = 64\nroot = '/dev/sda ro'\n");
    assert_eq!(config["boot"]["cmdline"], "root=/dev/sda ro console=ttyS0");
    says(&translation, &["root=/dev/sda", "/dev/vda"]);
}

#[test]
fn firmware_and_boot_loaders_are_no_kernels() {
    for kernel in [
        "/usr/lib/xen-4.17/boot/hvmloader",
        "/usr/share/OVMF/OVMF_CODE_4M.fd",
        "/usr/share/seabios/bios-256k.bin",
        "/usr/lib/xen-4.17/bin/pygrub",
        "/usr/lib/grub-xen/grub-x86_64-xen.bin",
    ] {
        for (config, translation) in both(kernel, ("M", "64", "64"), ("1", "1"), "a") {
            assert_eq!(config["boot"]["kernel"], "vmlinuz");
            says(&translation, &[kernel, "no firmware"]);
            says(&translation, &["no kernel is named"]);
        }
    }
}

#[test]
fn a_disk_of_xms_time_has_its_device_before_the_last_colon() {
    let (config, translation) = sample(
        "kernel = 'k'\ndisk = [ 'file:/a.iso,ioemu:hdc:cdrom,r', 'phy:/dev/b,ioemu:hda,w', 'file:/c,hdb:disk,w',\n\
         'tap:tapdisk:aio:/d,xvdd:cdrom,r', 'format=raw,vdev=hde:cdrom,target=/e', 'drbd:res,xvdf,w', 'vmdk:/g,xvdg,w' ]\n",
    );
    let disk = |id: &str, path: &str, read_only: bool| match read_only {
        true => json!({ "id": id, "path": path, "read_only": true }),
        false => json!({ "id": id, "path": path }),
    };
    assert_eq!(
        config["disks"],
        json!([
            disk("hdc", "/a.iso", true),
            disk("hda", "/dev/b", false),
            disk("hdb", "/c", false),
            disk("xvdd", "/d", true),
            disk("hde", "/e", true)
        ])
    );
    lists(&translation, 3, &["drbd", "left out"]);
    lists(&translation, 3, &["vmdk", "left out"]);
}

#[test]
fn an_image_of_a_format_that_is_not_served_is_left_out_by_both() {
    let (config, translation) = sample(
        "<domain><os><kernel>k</kernel></os><devices><disk device='disk'><driver name='qemu' type='vmdk'/>\
         <source file='/a.vmdk'/><target dev='vda' bus='virtio'/></disk></devices></domain>",
    );
    assert_eq!(config.get("disks"), None);
    says(&translation, &["vmdk", "left out"]);
    let (config, _) = sample("kernel = 'k'\ndisk = [ '/a.vmdk,vmdk,xvda' ]\n");
    assert_eq!(config.get("disks"), None);
    // What is behind a qcow2 image nobody has said.
    let (_, translation) = sample(
        "<domain><os><kernel>k</kernel></os><devices><disk device='disk'><driver name='qemu' type='QCOW2'/>\
         <source file='/a.img'/><target dev='vda' bus='virtio'/></disk></devices></domain>",
    );
    says(&translation, &["/a.img", "backing"]);
}

#[test]
fn the_format_of_an_image_is_what_it_tells_and_else_its_name_is_doubted() {
    let told = |path: &str| match path {
        "/q.img" => Some(Some("qcow2")),
        "/v.img" => Some(Some("VMDK")),
        "/raw.img" => Some(None),
        _ => None,
    };
    let text = "kernel = 'k'\ndisk = [ 'file:/q.img,xvda,w', '/q.img,raw,xvdb', 'file:/v.img,xvdc,w',\n\
                '/raw.img,qcow2,xvdd', 'file:/away.qcow2,xvde,w', '/raw.img,,xvdf' ]\n";
    let translation = import_bytes(text.as_bytes(), &told).unwrap();
    let formats: Vec<_> = translation.config.disks.iter().map(|disk| disk.format.as_deref()).collect();
    assert_eq!(formats, [Some("qcow2"), Some("raw"), None, Some("qcow2"), None, None]);
    lists(&translation, 2, &["/q.img", "is a qcow2 image, and is served as one"]);
    lists(&translation, 2, &["/q.img", "said to be raw"]);
    lists(&translation, 2, &["/v.img", "VMDK", "qemu-img convert"]);
    lists(&translation, 3, &["/raw.img", "said to be qcow2, and is raw"]);
    lists(&translation, 3, &["/away.qcow2", "its name says qcow2"]);
    let xml = "<domain><os><kernel>k</kernel></os><devices><disk><source file='/q.img'/><target dev='vda'/></disk>\
               <disk><driver type='raw'/><source file='/q.img'/><target dev='vdb'/></disk></devices></domain>";
    let translation = import_bytes(xml.as_bytes(), &told).unwrap();
    let formats: Vec<_> = translation.config.disks.iter().map(|disk| disk.format.as_deref()).collect();
    assert_eq!(formats, [Some("qcow2"), Some("raw")]);
}

#[test]
fn a_file_in_any_encoding_is_read_and_one_that_says_nothing_is_refused() {
    let import = |bytes: &[u8]| import_bytes(bytes, &|_| None);
    let plain = import(b"# caf\xc3\xa9\nname = 'a'\nkernel = 'k'\n").unwrap();
    for bytes in [
        &b"# caf\xe9\nname = 'a'\nkernel = 'k'\n"[..],
        b"\xef\xbb\xbf# caf\xc3\xa9\nname = 'a'\nkernel = 'k'\n",
        b"# caf\xe9\r\nname = 'a'\r\nkernel = 'k'\r\n",
    ] {
        assert_eq!(import(bytes).unwrap(), plain);
    }
    let wide: Vec<u8> = "\u{feff}<domain><name>a</name><os><kernel>k</kernel></os></domain>"
        .encode_utf16()
        .flat_map(u16::to_le_bytes)
        .collect();
    assert_eq!(import(&wide).unwrap().config, plain.config);
    let xml = b"<?xml version='1.0' encoding='iso-8859-1'?>\n<!-- caf\xe9 -->\n<domain><name>a</name>\
                <os><kernel>k</kernel></os></domain>";
    assert_eq!(import(xml).unwrap().config, plain.config);
    // Where it counts, it is said.
    says(&import(b"name = 'a'\nkernel = '/caf\xe9'\n").unwrap(), &["Latin-1"]);
    for nothing in
        [&b""[..], b"\n \n", b"# a comment\n", b"\xef\xbb\xbf", b";;", b"<domain/>", b"<domain> </domain>"]
    {
        let refused = import(nothing).unwrap_err();
        assert_eq!(refused, ImportError::Empty);
        assert!(refused.to_string().contains("xl.cfg(5)"));
    }
}

#[test]
fn the_cpu_nested_virtualization_and_the_pmu_are_taken_over_and_another_model_is_lost() {
    let (_, xl) = sample("kernel = 'k'\nnestedhvm = 1\n");
    assert_eq!((xl.config.nested, xl.config.pmu), (Some(true), None));
    let domain = |inner: &str| sample(&format!("<domain><os><kernel>k</kernel></os>{inner}</domain>")).1;
    let libvirt = domain(
        "<features><pmu state='on'/></features><cpu mode='host-passthrough'>\
         <feature policy='require' name='svm'/><feature policy='disable' name='rtm'/>\
         <feature policy='require' name='sha-ni'/><feature policy='require' name='avx9'/></cpu>",
    );
    assert_eq!((libvirt.config.nested, libvirt.config.pmu), (Some(true), Some(true)));
    let cpu = libvirt.config.cpu.clone().unwrap();
    assert_eq!((cpu.require, cpu.disable), (vec!["sha_ni".to_owned()], vec!["rtm".to_owned()]));
    says(&libvirt, &["no such CPU feature"]);
    says(&domain("<cpu mode='custom'><model>Skylake-Server</model></cpu>"), &["x86-64-v2"]);
    let off = domain("<features><pmu state='off'/></features><cpu mode='host-model'/>");
    assert_eq!((off.config.nested, off.config.pmu, off.config.cpu), (None, None, None));
}

#[test]
fn both_give_the_same_reason_for_the_same_thing() {
    for (xl, libvirt, why) in [
        ("vnc = 1", "<devices><graphics type='vnc'/></devices>", "there is no display"),
        ("bios = 'ovmf'", "<os><loader>/x.fd</loader></os>", "there is no firmware"),
        ("pci = [ '01:00.0' ]", "<devices><hostdev/></devices>", "no devices of the host"),
        ("localtime = 1", "<clock offset='localtime'/>", "no real-time clock"),
        ("cpu_weight = 5", "<cputune><shares>5</shares></cputune>", "sched-set"),
        ("cpus = '1'", "<vcpu cpuset='1'>1</vcpu>", "set \"cpus\""),
        ("bootloader = 'pygrub'", "<bootloader>pygrub</bootloader>", "no boot loader"),
        ("uuid = 'x'", "<uuid>x</uuid>", "is no UUID"),
        ("on_crash = 'rename-restart'", "<on_crash>rename-restart</on_crash>", "\"restart\" here"),
    ] {
        let (_, of_xl) = sample(&format!("kernel = 'k'\n{xl}\n"));
        let (_, of_libvirt) = sample(&format!("<domain><os><kernel>k</kernel></os>{libvirt}</domain>"));
        for translation in [of_xl, of_libvirt] {
            says(&translation, &[why]);
        }
    }
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
