//! `domus import`: the command; what it makes of what is tested beside it.

#![allow(clippy::unwrap_used, reason = "only tests")]

mod common;

use common::Host;

#[test]
fn a_config_of_xl_s_is_printed_as_one_of_domus_and_what_is_lost_goes_to_standard_error() {
    let host = Host::new(false);
    std::fs::write(host.path("vmlinuz"), "").unwrap();
    host.write(
        "web.cfg",
        "name = 'web'\nkernel = 'vmlinuz'\nmemory = 64\nvnc = 1\ndisk = [ '/srv/web.img,,xvda' ]\n",
    );
    let out = host.domus(&["import", "web.cfg"]);
    assert_eq!(out.status.code(), Some(0));
    let config: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!((&config["name"], &config["memory"]), (&"web".into(), &"64MiB".into()));
    assert_eq!(String::from_utf8(out.stderr).unwrap(), "web.cfg:4: vnc = \"1\": there is no display\n");

    let both: serde_json::Value = serde_json::from_str(&host.ok(&["import", "--json", "web.cfg"])).unwrap();
    assert_eq!(both["config"], config);
    assert_eq!((&both["lost"][0]["line"], &both["lost"][0]["what"]), (&4.into(), &"vnc = \"1\"".into()));

    // What dom0 would refuse is said, after the config.
    host.write(
        "small.xml",
        "<domain><name>a</name><memory unit='MiB'>1</memory><os><kernel>k</kernel></os></domain>",
    );
    let out = host.domus(&["import", "small.xml"]);
    assert_eq!(out.status.code(), Some(1));
    assert!(!out.stdout.is_empty());
    assert!(String::from_utf8(out.stderr).unwrap().contains("memory: 1MiB is too little"));

    // Images that are here are looked at.
    let image = host.path("win11.img");
    host.ok(&["disk", "create", image.to_str().unwrap(), "1M", "--format", "qcow2"]);
    host.write(
        "win.cfg",
        &format!("name = 'win'\nkernel = 'k'\ndisk = [ 'file:{},xvda,w' ]\n", image.display()),
    );
    let both: serde_json::Value = serde_json::from_str(&host.ok(&["import", "--json", "win.cfg"])).unwrap();
    assert_eq!(both["config"]["disks"][0]["format"], "qcow2");
    assert!(both["lost"].to_string().contains("is a qcow2 image"), "{both}");

    std::fs::write(host.path("latin1.cfg"), b"# caf\xe9\nname = 'a'\nkernel = 'k'\nmemory = 64\n").unwrap();
    host.ok(&["import", "latin1.cfg"]);
    host.write("empty.cfg", "# nothing\n");
    assert!(host.refused(&["import", "empty.cfg"]).contains("says nothing of a domain"));

    host.write("bad.cfg", "memory 5\n");
    let line = host.refused(&["import", "bad.cfg"]);
    assert!(line.starts_with("bad.cfg: line 1: "), "{line}");
    assert!(host.refused(&["import", "no.cfg"]).contains("no.cfg"));
}
