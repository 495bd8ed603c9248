//! `domus disk` against qemu-img: what one makes, the other reads.

#![allow(clippy::unwrap_used, reason = "only tests")]

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Command, Output};

use dom0::host::locks::{Lock, take};
use serde_json::Value;
use tempfile::TempDir;

struct ImageFolder(TempDir);

impl ImageFolder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn output(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_domus"));
        command.current_dir(&self.0).arg("disk").args(args).output().unwrap()
    }

    fn disk(&self, args: &[&str]) -> String {
        let output = self.output(args);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.disk(args)).unwrap()
    }

    /// The line of a command that must fail, with this status.
    fn refused(&self, status: i32, args: &[&str]) -> String {
        let output = self.output(args);
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(status), "{args:?}: {text}");
        assert!(status == 2 || text.lines().count() == 1, "{text}");
        text
    }

    fn qemu_img(&self, args: &[&str]) -> String {
        let output = Command::new("qemu-img").current_dir(&self.0).args(args).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// A raw image with data here and there.
    fn pattern(&self, name: &str, bytes: u64) {
        let file = File::create(self.path(name)).unwrap();
        file.set_len(bytes).unwrap();
        for (n, at) in (0..bytes).step_by(700_001).enumerate() {
            let len = 100_000.min(bytes - at) as usize;
            file.write_all_at(&vec![n as u8 + 1; len], at).unwrap();
        }
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.0).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

#[test]
fn what_is_created_is_what_qemu_img_sees() {
    let folder = ImageFolder::new();
    folder.disk(&["create", "a.qcow2", "3G"]);
    folder.disk(&["create", "b.img", "5M"]);
    folder.disk(&["create", "c.qcow2", "--backing", "b.img"]);
    folder.disk(&["create", "d", "1T", "--format", "qcow2", "--backing", "a.qcow2"]);
    folder.qemu_img(&["check", "-q", "a.qcow2"]);
    let info = |name: &str| -> Value {
        serde_json::from_str(&folder.qemu_img(&["info", "--output=json", name])).unwrap()
    };
    assert_eq!(info("a.qcow2")["virtual-size"], 3_u64 << 30);
    assert_eq!(
        (&info("b.img")["format"], &info("b.img")["virtual-size"]),
        (&"raw".into(), &(5 << 20).into())
    );
    assert_eq!(
        (&info("c.qcow2")["backing-filename-format"], &info("c.qcow2")["virtual-size"]),
        (&"raw".into(), &(5 << 20).into())
    );
    assert_eq!(info("d")["full-backing-filename"], folder.path("a.qcow2").to_str().unwrap());
    let seen = folder.json(&["info", "d", "--format", "qcow2", "--json"]);
    assert_eq!((&seen["bytes"], &seen["qcow2"]["backing_format"]), (&(1_u64 << 40).into(), &"qcow2".into()));
    assert!(folder.disk(&["info", "c.qcow2"]).contains("backed by"));
}

#[test]
fn a_conversion_there_and_back_changes_nothing() {
    let folder = ImageFolder::new();
    folder.pattern("a.img", (10 << 20) + 512);
    folder.disk(&["convert", "a.img", "b.qcow2"]);
    folder.qemu_img(&["check", "-q", "b.qcow2"]);
    folder.qemu_img(&["compare", "-q", "-f", "raw", "-F", "qcow2", "a.img", "b.qcow2"]);
    folder.qemu_img(&["convert", "-q", "-c", "-O", "qcow2", "b.qcow2", "compressed.qcow2"]);
    folder.disk(&["convert", "compressed.qcow2", "c.img"]);
    assert!(fs::read(folder.path("a.img")).unwrap() == fs::read(folder.path("c.img")).unwrap());
    folder.disk(&["create", "over.qcow2", "--backing", "a.img"]);
    let refused = folder.refused(1, &["convert", "over.qcow2", "d.img"]);
    assert!(refused.contains("a.img") && refused.contains("\"backing\""), "{refused}");
    folder.disk(&["convert", "over.qcow2", "d.img", "--backing", "a.img:raw"]);
    assert!(fs::read(folder.path("a.img")).unwrap() == fs::read(folder.path("d.img")).unwrap());
}

#[test]
fn an_image_is_made_shorter_only_if_that_is_said() {
    let folder = ImageFolder::new();
    folder.pattern("a.img", 4 << 20);
    folder.disk(&["convert", "a.img", "b.qcow2"]);
    for name in ["a.img", "b.qcow2"] {
        assert!(folder.refused(1, &["resize", name, "1M"]).contains("--shrink"));
        folder.disk(&["resize", name, "6M"]);
        folder.disk(&["resize", name, "3M", "--shrink"]);
        assert_eq!(folder.json(&["info", name, "--json"])["bytes"], 3 << 20);
    }
    folder.qemu_img(&["check", "-q", "b.qcow2"]);
    folder.qemu_img(&["compare", "-q", "-f", "raw", "-F", "qcow2", "a.img", "b.qcow2"]);
}

#[test]
fn the_format_is_what_the_bytes_tell_and_not_what_the_name_does() {
    let folder = ImageFolder::new();
    folder.disk(&["create", "cloud.img", "8M", "--format", "qcow2"]);
    let seen = folder.json(&["info", "cloud.img", "--json"]);
    assert_eq!((&seen["format"], &seen["bytes"]), (&"qcow2".into(), &(8 << 20).into()));
    folder.disk(&["convert", "cloud.img", "a.img"]);
    assert_eq!(fs::metadata(folder.path("a.img")).unwrap().len(), 8 << 20);
    folder.disk(&["resize", "cloud.img", "9M"]);
    folder.disk(&["create", "over.qcow2", "--backing", "cloud.img"]);
    assert_eq!(folder.json(&["info", "over.qcow2", "--json"])["qcow2"]["backing_format"], "qcow2");
    folder.disk(&["convert", "over.qcow2", "b.img", "--backing", "cloud.img"]);
    folder.disk(&["snapshot", "cloud.img", "--create", "x"]);
    // Said expressly, a file is what it is.
    assert_eq!(folder.json(&["info", "cloud.img", "--format", "raw", "--json"])["format"], "raw");
    for (format, name) in
        [("vmdk", "VMDK"), ("vdi", "VDI"), ("vhdx", "VHDX"), ("vpc", "VHD"), ("qed", "QED"), ("qcow", "qcow")]
    {
        let image = format!("{format}.img");
        folder.qemu_img(&["create", "-q", "-f", format, &image, "4M"]);
        for args in [
            &["info", &image][..],
            &["check", &image],
            &["convert", &image, "new.img"],
            &["resize", &image, "8M"],
            &["create", "new.qcow2", "--backing", &image],
            &["snapshot", &image, "new.qcow2"],
            &["convert", "over.qcow2", "new.img", "--backing", &image],
        ] {
            let refused = folder.refused(1, args);
            assert!(refused.contains(&format!("{image} is a {name} image")), "{refused}");
            assert!(refused.contains("raw if") && refused.contains("qemu-img convert"), "{refused}");
        }
        folder.disk(&["info", &image, "--format", "raw"]);
    }
    folder.qemu_img(&["create", "-q", "-f", "vpc", "-o", "subformat=fixed", "fixed.img", "4M"]);
    assert!(folder.refused(1, &["info", "fixed.img"]).contains("a VHD image"));
    let (iso, luks) = (folder.path("cd.qcow3"), folder.path("luks.img"));
    fs::write(&iso, [&vec![0; 32_769][..], b"CD001", &vec![0; 2042]].concat()).unwrap();
    fs::write(&luks, [&b"LUKS\xba\xbe\0\x02"[..], &[0; 4088]].concat()).unwrap();
    assert_eq!(folder.json(&["info", "cd.qcow3", "--json"])["format"], "raw");
    assert!(folder.refused(1, &["info", "luks.img"]).contains("a LUKS image"));
}

#[test]
fn an_image_that_was_cut_off_is_refused_and_never_read_as_zeros() {
    let folder = ImageFolder::new();
    folder.pattern("a.img", (4 << 20) + 512);
    folder.disk(&["convert", "a.img", "ours.qcow2"]);
    for (name, options) in [
        ("theirs.qcow2", &["-o", "cluster_size=4k"][..]),
        ("second.qcow2", &["-o", "compat=0.10"]),
        ("compressed.qcow2", &["-c"]),
        ("prepared.qcow2", &["-o", "preallocation=metadata"]),
    ] {
        let args = [&["convert", "-q", "-f", "raw", "-O", "qcow2"], options, &["a.img", name]].concat();
        folder.qemu_img(&args);
    }
    folder.disk(&["create", "empty.qcow2", "1T"]);
    folder.qemu_img(&["create", "-q", "-f", "qcow2", "bare.qcow2", "1G"]);
    for name in ["ours", "theirs", "second", "compressed", "prepared", "empty", "bare"]
        .map(|name| format!("{name}.qcow2"))
    {
        assert!(folder.disk(&["check", &name]).contains("is there"), "{name}");
        folder.disk(&["info", &name]);
        let path = folder.path(&name);
        let whole = fs::read(&path).unwrap();
        // In the data, in the tables, in the header. Of the last cluster the disk has 512 bytes.
        for part in [0.95, 0.5, 0.2, 0.0001] {
            let len = (whole.len() as f64 * part) as usize;
            fs::write(&path, &whole[..len]).unwrap();
            for args in [&["info", &name][..], &["check", &name], &["convert", &name, "new.img"]] {
                let refused = folder.refused(1, args);
                let says = ["cut off", "no qcow2 image"].iter().any(|part| refused.contains(part));
                assert!(says && refused.contains(&name), "{len} of {}: {refused}", whole.len());
            }
        }
        fs::write(&path, whole).unwrap();
    }
    // What is behind an image is read through it.
    folder.disk(&["create", "over.qcow2", "--backing", "ours.qcow2"]);
    File::options().write(true).open(folder.path("ours.qcow2")).unwrap().set_len(2 << 20).unwrap();
    let refused = folder.refused(1, &["convert", "over.qcow2", "new.img", "--backing", "ours.qcow2"]);
    assert!(refused.contains("ours.qcow2: ") && refused.contains("cut off"), "{refused}");
    assert!(folder.refused(1, &["resize", "ours.qcow2", "8M"]).contains("cut off"));
    assert!(!folder.path("new.img").exists());
    assert!(folder.disk(&["check", "a.img"]).contains("no tables"));
}

#[test]
fn the_line_to_write_for_what_is_behind_an_image_is_json() {
    let folder = ImageFolder::new();
    folder.disk(&["create", "a.img", "1M"]);
    let base = folder.path("a.img");
    fs::rename(&base, folder.path("a \"b\".img")).unwrap();
    folder.disk(&["create", "over.qcow2", "--backing", "a \"b\".img"]);
    let described =
        format!(r#"json:{{"driver":"raw","file":{{"driver":"file","filename":"{}"}}}}"#, base.display());
    fs::copy(folder.path("a \"b\".img"), &base).unwrap();
    folder.qemu_img(&["create", "-q", "-f", "qcow2", "-b", &described, "-F", "raw", "described.qcow2", "1M"]);
    for (image, path) in [("over.qcow2", folder.path("a \"b\".img")), ("described.qcow2", base.clone())] {
        let refused = folder.refused(1, &["convert", image, "new.img"]);
        let line = refused.split("\"backing\": ").nth(1).unwrap().split(" in a config").next().unwrap();
        let line: Value = serde_json::from_str(line).unwrap();
        assert_eq!(line, serde_json::json!([{ "path": path, "format": "raw" }]), "{refused}");
        assert_eq!(image == "described.qcow2", refused.contains("qemu-img rebase -u"), "{refused}");
    }
}

#[test]
fn too_few_open_files_are_counted_and_the_cure_is_told() {
    let folder = ImageFolder::new();
    // Without the capability that goes beyond the limit.
    let output = Command::new("setpriv")
        .args(["--bounding-set=-sys_resource", "prlimit", "--nofile=512:512", env!("CARGO_BIN_EXE_domus")])
        .args(["disk", "create", "a.qcow2", "1M"])
        .current_dir(&folder.0)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(
        text.contains("1024 open files") && text.contains("512") && text.contains("ulimit -Hn 1024"),
        "{text}"
    );
}

#[test]
fn an_image_with_snapshots_is_whole_until_what_only_they_have_is_cut_off() {
    let folder = ImageFolder::new();
    folder.pattern("a.img", 1 << 20);
    folder.disk(&["convert", "a.img", "b.qcow2"]);
    folder.disk(&["snapshot", "b.qcow2", "--create", "before"]);
    folder.disk(&["snapshot", "b.qcow2", "--create", "again"]);
    assert!(folder.disk(&["check", "b.qcow2"]).contains("is there"));
}

#[test]
fn snapshots_are_overlays_or_inside() {
    let folder = ImageFolder::new();
    folder.pattern("a.img", 2 << 20);
    folder.disk(&["snapshot", "a.img", "over.qcow2"]);
    folder.qemu_img(&["compare", "-q", "-f", "raw", "-F", "qcow2", "a.img", "over.qcow2"]);
    folder.disk(&["convert", "a.img", "b.qcow2"]);
    folder.disk(&["snapshot", "b.qcow2", "--create", "before"]);
    assert_eq!(folder.json(&["snapshot", "b.qcow2", "--list", "--json"])[0]["name"], "before");
    assert_eq!(folder.json(&["info", "b.qcow2", "--json"])["qcow2"]["snapshots"], 1);
    folder.disk(&["snapshot", "b.qcow2", "--apply", "before"]);
    folder.disk(&["snapshot", "b.qcow2", "--delete", "before"]);
    assert_eq!(folder.json(&["snapshot", "b.qcow2", "--list", "--json"]).as_array().unwrap().len(), 0);
    assert!(folder.refused(1, &["snapshot", "b.qcow2", "--delete", "before"]).contains("before"));
    assert!(folder.refused(1, &["snapshot", "a.img", "--list"]).contains("overlay"));
}

#[test]
fn what_fails_says_why_and_leaves_nothing() {
    let folder = ImageFolder::new();
    fs::write(folder.path("bad.qcow2"), vec![0x51; 4096]).unwrap();
    folder.disk(&["create", "a.img", "1M"]);
    assert!(folder.refused(1, &["create", "a.img", "1M"]).contains("there already"));
    assert!(folder.refused(1, &["info", "bad.qcow2"]).contains("no qcow2 image"));
    assert!(folder.refused(1, &["convert", "bad.qcow2", "new.img"]).contains("no qcow2 image"));
    assert!(folder.refused(1, &["create", "no/a.img", "1M"]).contains("no/a.img"));
    assert!(folder.refused(1, &["create", "new.qcow2", "--backing", "bad.qcow2"]).contains("no qcow2 image"));
    assert!(folder.refused(1, &["create", "new.img", "--backing", "a.img"]).contains("--format qcow2"));
    assert!(folder.refused(1, &["info", "."]).contains("no image"));
    folder.refused(2, &["create", "new.img", "five"]);
    folder.refused(2, &["create", "new.img"]);
    folder.refused(2, &["snapshot", "a.img"]);
    folder.refused(2, &["snapshot", "a.img", "over.qcow2", "--list"]);
    assert_eq!(folder.names(), ["a.img", "bad.qcow2"]);
}

#[test]
fn an_image_in_use_is_left_alone() {
    let folder = ImageFolder::new();
    folder.disk(&["create", "a.qcow2", "1M"]);
    let user = File::options().read(true).write(true).open(folder.path("a.qcow2")).unwrap();
    assert!(take(&user, Lock::Write).unwrap());
    for args in [
        &["resize", "a.qcow2", "2M"][..],
        &["convert", "a.qcow2", "b.img"],
        &["snapshot", "a.qcow2", "over.qcow2"],
        &["snapshot", "a.qcow2", "--create", "x"],
    ] {
        let refused = folder.refused(1, args);
        assert!(
            refused.contains("in use by") && refused.contains(&format!("pid {}", std::process::id())),
            "{refused}"
        );
    }
    assert!(folder.json(&["info", "a.qcow2", "--json"])["in_use_by"].is_string());
    assert_eq!(folder.names(), ["a.qcow2"]);
}
