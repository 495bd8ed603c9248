//! Man pages: `domus(1)` with its hand-written end, and `domus-domain.json(5)` from the JSON Schema.
//!
//! `domus manual` writes one page per command from clap. Facts that no option holds (exit status, how domains are
//! named) are in `tools/packaging/man/domus.1.end`, the end of `domus.1`. The page of the config takes each key's type,
//! range, default and description from `dom0/schema/domain.schema.json`; facts that concern several keys are in
//! `domus-domain.json.5.end`. Each default is written once, in the schema.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::workspace;

/// The file of the page that describes a domain's config.
const DOMAIN_PAGE: &str = "domus-domain.json.5";

/// Completes the pages that `domus manual` has written into `folder`.
pub fn complete(folder: &Path) -> Result<()> {
    let page = folder.join("domus.1");
    let commands = fs::read_to_string(&page).with_context(|| format!("cannot read {}", page.display()))?;
    fs::write(&page, commands + &end("domus.1")?)?;
    let page = domain_page(&schema("domain")?)? + &end(DOMAIN_PAGE)?;
    fs::write(folder.join(DOMAIN_PAGE), page)?;
    Ok(())
}

/// A JSON Schema of dom0's, `domain` or `network`, as it is in the tree.
pub fn schema(name: &str) -> Result<Value> {
    let path = workspace::root().join(format!("dom0/schema/{name}.schema.json"));
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is no JSON", path.display()))
}

/// The hand-written end of a page.
pub fn end(page: &str) -> Result<String> {
    let path = workspace::root().join(format!("tools/packaging/man/{page}.end"));
    fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
}

/// A key of the config.
pub struct Key<'a> {
    /// From the top, such as `disks[].cache`.
    pub path: String,
    /// Its own schema, without what it refers to.
    pub own: &'a Value,
    /// The schema of its value.
    pub value: &'a Value,
    /// What it is for, as the schema says of the key, of its value or of the object that it is in.
    pub description: Option<&'a str>,
    /// A config without it is refused.
    pub required: bool,
}

/// Every key of a schema, in order: those of an object after the object itself.
pub fn keys(schema: &Value) -> Vec<Key<'_>> {
    let mut found = Vec::new();
    collect(schema, schema, "", &mut found);
    found
}

fn collect<'a>(root: &'a Value, object: &'a Value, prefix: &str, found: &mut Vec<Key<'a>>) {
    let Some(properties) = object["properties"].as_object() else { return };
    let required = object["required"].as_array().map_or(&[][..], Vec::as_slice);
    let is_required = |name: &String| required.iter().any(|key| key == name.as_str());
    let mut names: Vec<&String> = properties.keys().collect();
    names.sort_by_key(|name| (!is_required(name), name.as_str()));
    for name in names {
        let own = &properties[name];
        let value = value_of(root, own);
        let path = format!("{prefix}{name}");
        let description = [own, value, object].into_iter().find_map(|schema| schema["description"].as_str());
        found.push(Key { path: path.clone(), own, value, description, required: is_required(name) });
        let items = value_of(root, &value["items"]);
        collect(root, items, &format!("{path}[]."), found);
        let forms = alternatives(root, value);
        let first = found.len();
        for object in &forms {
            collect(root, object, &format!("{path}."), found);
        }
        // What one form of several needs, another does without.
        if forms.len() > 1 {
            found[first..].iter_mut().for_each(|key| key.required = false);
        }
    }
}

/// What a schema refers to, if it does: by `$ref`, or as the one alternative to `null`.
fn value_of<'a>(root: &'a Value, own: &'a Value) -> &'a Value {
    let not_null = |value: &&Value| value["type"] != "null";
    let mut value = own;
    if let Some([first, second]) = own["anyOf"].as_array().map(Vec::as_slice)
        && [first, second].into_iter().filter(not_null).count() == 1
    {
        value = [first, second].into_iter().find(not_null).unwrap_or(own);
    }
    let name = value["$ref"].as_str().and_then(|path| path.strip_prefix("#/$defs/"));
    name.map_or(value, |name| &root["$defs"][name])
}

/// The forms that a value may have; itself, if there is one only.
fn alternatives<'a>(root: &'a Value, value: &'a Value) -> Vec<&'a Value> {
    match value["oneOf"].as_array().or(value["anyOf"].as_array()) {
        Some(forms) => forms.iter().map(|form| value_of(root, form)).collect(),
        None => vec![value],
    }
}

/// The page, up to its hand-written end.
fn domain_page(schema: &Value) -> Result<String> {
    let mut page = String::from(
        ".TH DOMUS-DOMAIN.JSON 5 \"\" \"Domus\" \"File formats\"\n\
         .SH NAME\ndomus-domain.json \\- the config of a domain\n\
         .SH DESCRIPTION\n",
    );
    writeln!(page, "{}", text(schema["description"].as_str().context("the schema has no description")?))?;
    page += "An unknown key is an error.\n.SH KEYS\n";
    for key in keys(schema) {
        entry(&mut page, schema, &key).with_context(|| format!("the key {}", key.path))?;
    }
    Ok(page)
}

/// A key: what it is called, what it takes, its default, and what it is for.
fn entry(page: &mut String, root: &Value, key: &Key<'_>) -> Result<()> {
    let kind = kind(root, key.own, key.value);
    write!(page, ".TP\n\\fB{}\\fR ({kind}", text(&key.path))?;
    match &key.own["default"] {
        _ if key.required => write!(page, "; required")?,
        Value::Null => {}
        default => write!(page, "; default: {}", text(&default.to_string()))?,
    }
    writeln!(page, ")")?;
    writeln!(page, "{}", text(key.description.context("has no description")?))?;
    let forms = alternatives(root, key.value);
    let is_plain = |form: &&Value| form["const"].is_null() && form["properties"].is_null();
    // Such as a rate: the key says of what, its type how it is written.
    if let Some(written) = key.value["description"].as_str()
        && key.description != Some(written)
        && forms.iter().all(is_plain)
    {
        writeln!(page, "Accepted: {}", text(written))?;
    }
    let constants: Vec<&Value> = forms.into_iter().filter(|form| form["const"].is_string()).collect();
    if constants.is_empty() {
        return Ok(());
    }
    writeln!(page, ".RS")?;
    for form in constants {
        let description = form["description"].as_str().unwrap_or_default();
        writeln!(page, ".TP\n\\fB{}\\fR\n{}", text(&form["const"].to_string()), text(description))?;
    }
    writeln!(page, ".RE")?;
    Ok(())
}

/// What a value is, in a word or a few.
fn kind(root: &Value, own: &Value, value: &Value) -> String {
    let name = |kind: &str| match kind {
        "string" => "text",
        "integer" => "whole number",
        "boolean" => "true or false",
        "array" => "list",
        _ => "object",
    };
    let mut kinds: Vec<String> = Vec::new();
    for form in alternatives(root, value) {
        let written = match (&form["const"], &form["type"]) {
            (Value::String(_), _) => "text".into(),
            (_, Value::String(kind)) => name(kind).into(),
            (_, Value::Array(several)) => {
                let several = several.iter().filter_map(Value::as_str).filter(|kind| *kind != "null");
                several.map(name).collect::<Vec<_>>().join(" or ")
            }
            _ => continue,
        };
        if !kinds.contains(&written) {
            kinds.push(written);
        }
    }
    let range = match (own["minimum"].as_u64(), own["maximum"].as_u64()) {
        (Some(least), Some(most)) => format!(", {least} to {most}"),
        _ => String::new(),
    };
    kinds.join(", or ") + &range
}

/// Prose for a page: what is between backquotes is bold, and nothing in it is a request to troff.
fn text(prose: &str) -> String {
    let mut written = String::new();
    for (n, part) in prose.replace('\\', "\\e").replace('-', "\\-").replace('\n', " ").split('`').enumerate()
    {
        match n % 2 {
            0 => written += part,
            _ => write!(written, "\\fB{part}\\fR").unwrap_or_default(),
        }
    }
    if written.starts_with(['.', '\'']) {
        written.insert_str(0, "\\&");
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_of_a_config_has_every_key_with_the_schema_s_default() {
        let page = domain_page(&schema("domain").unwrap()).unwrap();
        for line in [
            r"\fBname\fR (text; required)",
            r"\fBvcpus\fR (whole number, 1 to 255; default: 1)",
            r#"\fBmemory\fR (text, or whole number; default: "512MiB")"#,
            r"\fBboot.kernel\fR (text; required)",
            r#"\fBdisks[].on_backend_loss\fR (text, or object; default: "stall")"#,
            r"\fBdisks[].backing[].path\fR (text; required)",
            r"\fBnets[].user.ports\fR (list; default: [])",
            r"\fBdisks[].limits.read_iops\fR (text, or whole number)",
            r"\fBdisks[].on_backend_loss.pause_after\fR (whole number)",
            r"\fBautostart.order\fR (whole number, 0 to 1000; default: 100)",
            r#"\fB"pause\-if\-full"\fR"#,
        ] {
            assert!(page.lines().any(|there| there == line), "{line} is not in\n{page}");
        }
    }

    #[test]
    fn no_line_of_prose_is_a_request_to_troff() {
        assert_eq!(text(".so `x` \\fB-n"), r"\&.so \fBx\fR \efB\-n");
    }
}
