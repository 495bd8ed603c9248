//! The names that systemd gives to units, slices and objects on the bus. Pure.
//!
//! A name's own `-` is escaped, so a `-` that is left separates: the second process of a role of `web1` is the instance
//! `web1-2`, and `domus-web1-2.slice` lies inside `domus-web1.slice` because that is what `-` means in a slice's name.

use std::fmt::Write;

use shared_abi::DomainName;
use shared_abi::Role;
use shared_abi::ids::IdError;

/// Instances of one template for one domain. Two are needed while a backend is exchanged.
const INSTANCES: u8 = 8;

/// `text` as a part of a unit's name (systemd.unit(5), "String Escaping"); no `-` is left in it.
pub fn escape(text: &str) -> String {
    let mut escaped = String::new();
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'.' if at > 0 => escaped.push('.'),
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' => escaped.push(byte.into()),
            _ => {
                let _ = write!(escaped, "\\x{byte:02x}");
            }
        }
    }
    escaped
}

/// The possible names of a unit of `template` for `whom`, with their numbers, the usual one first. A space or colon in
/// `whom` (`network lan`, `web1: eth0`) becomes a `-` between words.
pub fn candidates(template: &str, whom: &str) -> impl Iterator<Item = (u8, String)> {
    let words = whom.split([' ', ':']).filter(|word| !word.is_empty());
    let instance = words.map(escape).collect::<Vec<_>>().join("-");
    let template = template.to_owned();
    (1..=INSTANCES).map(move |n| match n {
        1 => (n, format!("{template}@{instance}.service")),
        n => (n, format!("{template}@{instance}-{n}.service")),
    })
}

/// Where the environment of such a unit of a domain or switch is, below the directory of all: `%p/%I/env` in the unit
/// (systemd.unit(5), "Specifiers"), in which the `-` before the number has become a `/`. Not by the escaped name:
/// systemd takes the file's name for a pattern, where a backslash means something else.
pub fn environment(template: &str, name: &str, n: u8) -> String {
    match n {
        1 => format!("{template}/{name}/env"),
        n => format!("{template}/{name}/{n}/env"),
    }
}

/// The unit of a domain's runner.
pub fn runner_unit(domain: &DomainName) -> String {
    format!("{}@{}.service", template(Role::Runner), escape(domain.as_str()))
}

/// The units of a domain's own processes.
pub fn units(domain: &DomainName) -> Vec<String> {
    let unit = |role| format!("{}@{}.service", template(role), escape(domain.as_str()));
    Role::of_a_domain().map(unit).collect()
}

/// The name of a role's template.
pub fn template(role: Role) -> String {
    format!("domus-{role}")
}

/// The slice of a domain's processes.
pub fn slice(domain: &str) -> String {
    format!("domus-{}.slice", escape(domain))
}

/// The object on the bus that is the unit.
pub fn object(unit: &str) -> String {
    let mut path = String::from("/org/freedesktop/systemd1/unit/");
    for (at, byte) in unit.bytes().enumerate() {
        match byte {
            b'0'..=b'9' if at == 0 => {
                let _ = write!(path, "_{byte:02x}");
            }
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => path.push(byte.into()),
            _ => {
                let _ = write!(path, "_{byte:02x}");
            }
        }
    }
    path
}

/// A value in double quotes, as a file of environment variables has it (systemd.exec(5), `EnvironmentFile=`).
pub fn quoted(value: &str) -> String {
    let mut text = String::from("\"");
    for c in value.chars() {
        if matches!(c, '"' | '\\' | '`' | '$') {
            text.push('\\');
        }
        text.push(c);
    }
    text.push('"');
    text
}

/// The kernel's rule (dev_valid_name): IFNAMSIZ with its NUL, no slash, colon or white space, no dots. Nor a quotation
/// mark, and no asterisk: such a name is written into a packet filter and told to dnsmasq, for which `v*` is every
/// interface that begins with a v.
pub fn is_interface(text: &str) -> bool {
    (1..=15).contains(&text.len())
        && text != "."
        && text != ".."
        && text
            .bytes()
            .all(|b| b.is_ascii_graphic() && !matches!(b, b'/' | b':' | b'%' | b'"' | b'\\' | b',' | b'*'))
}

/// The name of a domain.
///
/// # Errors
/// One line: it is no name, or could be taken for something else.
pub fn domain_name(text: &str) -> Result<DomainName, String> {
    let name: DomainName = text.parse().map_err(|error: IdError| error.to_string())?;
    if name.as_str() == "Domain-0" || name.as_str().bytes().all(|b| b.is_ascii_digit()) {
        return Err(format!(
            "\"{name}\" would be taken for the host or for a domain's ID: begin with a letter"
        ));
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_escaped_as_systemd_escape_does() {
        // systemd-escape NAME
        for (name, escaped) in [("web1", "web1"), ("a-b", "a\\x2db"), ("a.b_c", "a.b_c"), (".a", "\\x2ea")] {
            assert_eq!(escape(name), escaped);
        }
        assert_eq!(slice("a-b"), "domus-a\\x2db.slice");
    }

    #[test]
    fn the_second_process_of_a_domain_is_in_a_slice_inside_the_first_ones() {
        let names: Vec<String> = candidates("domus-block", "web-1").map(|(_, name)| name).take(2).collect();
        assert_eq!(names, ["domus-block@web\\x2d1.service", "domus-block@web\\x2d1-2.service"]);
        let (_, passt) = candidates("domus-passt", "web1: eth0").next().unwrap();
        assert_eq!(passt, "domus-passt@web1-eth0.service");
    }

    #[test]
    fn a_domain_has_a_unit_for_each_of_its_own_processes_and_none_for_a_switch() {
        let units = units(&"web-1".parse().unwrap());
        let of = |role| format!("domus-{role}@web\\x2d1.service");
        assert_eq!(units, ["console", "block", "net", "runner"].map(of));
    }

    #[test]
    fn objects_are_escaped_as_the_bus_wants() {
        let path = object("domus-block@a\\x2db.service");
        assert_eq!(path, "/org/freedesktop/systemd1/unit/domus_2dblock_40a_5cx2db_2eservice");
    }

    #[test]
    fn a_value_with_quotes_and_variables_stays_one_value() {
        assert_eq!(quoted(r#"/a b/"$x\"#), r#""/a b/\"\$x\\""#);
    }
}
