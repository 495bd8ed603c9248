//! The documents, held against what they describe.
//!
//! In every `*.md` of the tree: a relative link leads to something that exists, a command and its long options are ones
//! that the program's `--help` has, a key of a config is one of the JSON Schemas, prose has at most 120 columns. So has
//! a comment of a `*.rs`. The README at the top has at most 10,240 bytes. Each check returns its complaints, so that a
//! document made to be wrong shows that the check can fail.
//!
//! `domus` and `dom0` are run from `$DOMUS_BIN`, or from where cargo puts programs beside this test.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::CommandFactory;
use serde_json::Value;

use crate::{Xtask, manual, workspace};

/// Most bytes of the README at the top.
const MAX_BYTES: u64 = 10_240;
/// Most columns of a line of prose.
const MAX_COLUMNS: usize = 120;

/// Names between backquotes that look like keys of a config and are something else.
const NO_KEYS: &[&str] =
    &["io_uring", "kvm_amd", "kvm_intel", "net_tap", "net_vhost", "no_new_privs", "on_watchdog"];

/// A document: its lines outside code blocks, and its code blocks.
struct Document {
    path: PathBuf,
    /// Line numbers, from 1, and lines.
    prose: Vec<(usize, String)>,
    /// The line number of the fence, the language behind it, and the text.
    blocks: Vec<(usize, String, String)>,
}

impl Document {
    fn parse(path: &Path, text: &str) -> Self {
        let mut document = Self { path: path.to_path_buf(), prose: Vec::new(), blocks: Vec::new() };
        let mut block: Option<(usize, String, String)> = None;
        for (n, line) in text.lines().enumerate() {
            match (line.strip_prefix("```"), &mut block) {
                (Some(language), None) => block = Some((n + 1, language.to_owned(), String::new())),
                (Some(_), Some(_)) => document.blocks.extend(block.take()),
                (None, Some((_, _, text))) => *text += &format!("{line}\n"),
                (None, None) => document.prose.push((n + 1, line.to_owned())),
            }
        }
        assert!(block.is_none(), "{}: a code block has no end", path.display());
        document
    }

    /// A complaint about a line.
    fn at(&self, line: usize, problem: &str) -> String {
        format!("{}:{line}: {problem}", self.path.display())
    }

    /// What is between backquotes outside code blocks.
    fn spans(&self) -> impl Iterator<Item = (usize, &str)> {
        self.prose.iter().flat_map(|(n, line)| line.split('`').skip(1).step_by(2).map(|span| (*n, span)))
    }

    fn too_wide(&self) -> Vec<String> {
        let prose = self.prose.iter().filter(|(_, line)| !line.starts_with('|'));
        let wide = prose.filter(|(_, line)| line.chars().count() > MAX_COLUMNS);
        wide.map(|(n, _)| self.at(*n, &format!("has more than {MAX_COLUMNS} columns"))).collect()
    }

    /// A span that goes on in the next line would be read as the text between spans.
    fn open_spans(&self) -> Vec<String> {
        let odd = self.prose.iter().filter(|(_, line)| line.matches('`').count() % 2 == 1);
        odd.map(|(n, _)| self.at(*n, "has a backquote without another in the same line")).collect()
    }

    fn broken_links(&self) -> Vec<String> {
        let folder = self.path.parent().unwrap_or(Path::new("."));
        let mut broken = Vec::new();
        for (n, line) in &self.prose {
            let targets = line.split("](").skip(1).filter_map(|rest| rest.split(')').next());
            for target in targets.filter(|target| !target.contains("://") && !target.starts_with('#')) {
                let file = target.split('#').next().unwrap_or(target);
                if !folder.join(file).exists() {
                    broken.push(self.at(*n, &format!("links to {target}, which does not exist")));
                }
            }
        }
        broken
    }

    fn unknown_commands(&self, programs: &mut Programs) -> Vec<String> {
        let shell = self.blocks.iter().filter(|(_, language, _)| language == "sh");
        let lines = shell.flat_map(|(n, _, text)| text.lines().map(move |line| (*n, line)));
        let named = self.spans().chain(lines);
        named.filter_map(|(n, text)| Some(self.at(n, &programs.unknown(text)?))).collect()
    }

    fn unknown_keys(&self, schemas: &Schemas) -> Vec<String> {
        let mut unknown = Vec::new();
        for (n, span) in self.spans() {
            let fragment = span.starts_with('"') && span.contains("\":");
            let problem = match fragment {
                true => schemas.unknown_in(&format!("{{ {span} }}")),
                false => schemas.unknown(span).then(|| format!("{span} is no key of a config")),
            };
            unknown.extend(problem.map(|problem| self.at(n, &problem)));
        }
        for (n, _, text) in self.blocks.iter().filter(|(_, language, _)| language == "json") {
            unknown.extend(schemas.unknown_in(text).map(|problem| self.at(*n, &problem)));
        }
        unknown
    }
}

/// What programs say of themselves.
struct Programs {
    folder: PathBuf,
    /// What `--help` prints behind these words; none: there is no such command.
    help: BTreeMap<Vec<String>, Option<String>>,
}

impl Programs {
    fn new() -> Self {
        let beside = || {
            let test = std::env::current_exe().expect("this test is a file");
            test.ancestors().nth(2).expect("cargo puts tests into deps/").to_path_buf()
        };
        let folder = std::env::var_os("DOMUS_BIN").map_or_else(beside, PathBuf::from);
        Self { folder, help: BTreeMap::new() }
    }

    fn help(&mut self, words: &[String]) -> Option<&str> {
        if !self.help.contains_key(words) {
            let help = match words[0].as_str() {
                "xtask" => xtask_help(&words[1..]),
                program => self.program_help(program, &words[1..]),
            };
            self.help.insert(words.to_vec(), help);
        }
        self.help[words].as_deref()
    }

    fn program_help(&self, program: &str, words: &[String]) -> Option<String> {
        let path = self.folder.join(program);
        let output = Command::new(&path).args(words).arg("--help").output();
        let output = output.unwrap_or_else(|error| {
            panic!("cannot run {}: {error}; cargo build -p dom0 -p domus makes it", path.display())
        });
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// What is wrong with a line of a shell, if it runs a program of Domus'.
    fn unknown(&mut self, line: &str) -> Option<String> {
        let line = line.split(" #").next().unwrap_or(line);
        let is_set = |word: &&str| word.contains('=') && !word.starts_with('-');
        let mut rest = line.split_whitespace().skip_while(|word| *word == "sudo" || is_set(word)).peekable();
        let mut words = match rest.next()? {
            "cargo" if rest.next_if_eq(&"xtask").is_some() => vec!["xtask".to_owned()],
            program @ ("domus" | "dom0") => vec![program.to_owned()],
            _ => return None,
        };
        while self.help(&words)?.contains("Commands:") {
            let is_name = |word: &&str| {
                word.bytes().all(|byte| byte.is_ascii_lowercase() || matches!(byte, b'0'..=b'9' | b'-'))
            };
            let Some(word) = rest.next_if(|word| is_name(word) && !word.starts_with('-')) else { break };
            words.push(word.to_owned());
            if self.help(&words).is_none() {
                return Some(format!("{line}: there is no such command"));
            }
        }
        let help = self.help(&words)?;
        let is_part = |char: char| !(char.is_ascii_alphanumeric() || char == '-');
        let known: BTreeSet<&str> = help.split(is_part).filter(|word| word.starts_with("--")).collect();
        let given = rest.flat_map(|word| word.split(is_part)).filter(|word| word.starts_with("--"));
        let unknown = given.filter(|option| !known.contains(option)).collect::<Vec<_>>().join(", ");
        (!unknown.is_empty()).then(|| format!("{line}: there is no {unknown}"))
    }
}

/// What `cargo xtask` prints with these words and `--help`.
fn xtask_help(words: &[String]) -> Option<String> {
    let mut command = Xtask::command();
    command.build();
    let found = words.iter().try_fold(&mut command, |command, word| command.find_subcommand_mut(word))?;
    Some(found.render_long_help().to_string())
}

/// The keys of a domain's config and of a network's definition.
struct Schemas {
    domain: BTreeSet<String>,
    network: BTreeSet<String>,
}

impl Schemas {
    fn new() -> Self {
        let keys = |name| {
            let schema = manual::schema(name).unwrap();
            manual::keys(&schema).into_iter().map(|key| key.path).collect()
        };
        Self { domain: keys("domain"), network: keys("network") }
    }

    /// A span that is written as a key is written, and is none.
    fn unknown(&self, span: &str) -> bool {
        let written = |byte: u8| byte.is_ascii_lowercase() || matches!(byte, b'_' | b'.' | b'[' | b']');
        if !span.bytes().all(written) || span.ends_with(".rs") || NO_KEYS.contains(&span) {
            return false;
        }
        let mut keys = self.domain.iter().chain(&self.network);
        let top = span.split('.').next().unwrap_or(span);
        if span.contains("[]") || (top != span && self.domain.contains(top)) {
            let path = span.strip_suffix("[]").unwrap_or(span);
            return !keys.any(|key| key == path);
        }
        let is_word = span.contains('_') && !span.ends_with('_') && !span.contains('.');
        is_word && !keys.any(|key| key.rsplit('.').next() == Some(span))
    }

    /// What is wrong with the keys of a config or of a part of one.
    fn unknown_in(&self, text: &str) -> Option<String> {
        let value: Value = match serde_json::from_str(text) {
            Ok(value) => value,
            Err(error) => return Some(format!("{text} is no JSON: {error}")),
        };
        let mut named = Vec::new();
        paths(&value, "", &mut named);
        let unknown = |schema: &BTreeSet<String>| named.iter().find(|path| !schema.contains(*path));
        let unknown = unknown(&self.network).and_then(|_| unknown(&self.domain))?;
        Some(format!("{unknown} is no key of a config"))
    }
}

/// The keys of a value, as [`manual::Key`] writes them.
fn paths(value: &Value, prefix: &str, found: &mut Vec<String>) {
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                let path = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
                found.push(path.clone());
                paths(member, &path, found);
            }
        }
        Value::Array(elements) => {
            elements.iter().for_each(|element| paths(element, &format!("{prefix}[]"), found))
        }
        _ => {}
    }
}

/// Every file of the tree whose name ends like this, and its text.
fn files(ending: &str) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut folders = vec![workspace::root()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() && !name.starts_with('.') && name != "target" {
                folders.push(path);
            } else if name.ends_with(ending) {
                let text = fs::read_to_string(&path).unwrap();
                found.push((path, text));
            }
        }
    }
    found
}

/// Every complaint about the comments of a Rust file.
fn wide_comments(path: &Path, text: &str) -> Vec<String> {
    let comments = text.lines().zip(1..).filter(|(line, _)| line.trim_start().starts_with("//"));
    let wide = comments.filter(|(line, _)| line.chars().count() > MAX_COLUMNS);
    wide.map(|(_, n)| format!("{}:{n}: has more than {MAX_COLUMNS} columns", path.display())).collect()
}

/// Every complaint about a document.
fn complaints(document: &Document, programs: &mut Programs, schemas: &Schemas) -> Vec<String> {
    let mut complaints = document.too_wide();
    complaints.extend(document.open_spans());
    complaints.extend(document.broken_links());
    complaints.extend(document.unknown_commands(programs));
    complaints.extend(document.unknown_keys(schemas));
    complaints
}

#[test]
fn the_documents_name_what_there_is_in_lines_that_can_be_read() {
    let (mut programs, schemas) = (Programs::new(), Schemas::new());
    let documents: Vec<_> = files(".md").iter().map(|(path, text)| Document::parse(path, text)).collect();
    assert!(documents.len() >= 8, "only {} documents", documents.len());
    let complaints: Vec<String> =
        documents.iter().flat_map(|document| complaints(document, &mut programs, &schemas)).collect();
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

#[test]
fn comments_have_lines_that_can_be_read() {
    let (root, files) = (workspace::root(), files(".rs"));
    assert!(files.len() > 400, "only {} Rust files", files.len());
    let complaints: Vec<String> = files.iter().flat_map(|(path, text)| wide_comments(path, text)).collect();
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
    let wide = format!("fn f() {{\n    /// {}\n}}", "word ".repeat(25));
    assert!(
        matches!(&wide_comments(&root, &wide)[..], [one] if one.ends_with(":2: has more than 120 columns"))
    );
}

#[test]
fn the_readme_is_read_in_one_go() {
    let bytes = fs::metadata(workspace::root().join("README.md")).unwrap().len();
    assert!(bytes <= MAX_BYTES, "README.md has {bytes} bytes: at most {MAX_BYTES} would do");
}

#[test]
fn the_notes_in_the_page_of_domus_are_on_commands_that_there_are() {
    let page = manual::end("domus.1").unwrap();
    let notes = page.split(".SH NOTES ON COMMANDS\n").nth(1).unwrap();
    let tags = notes.split("\n.TP\n.B ").skip(1).map(|note| note.lines().next().unwrap_or_default());
    let mut programs = Programs::new();
    let unknown = tags.flat_map(|tag| tag.split(", ")).map(|name| programs.unknown(&format!("domus {name}")));
    let unknown: Vec<Option<String>> = unknown.collect();
    assert!(unknown.len() > 20 && unknown.iter().all(Option::is_none), "{unknown:?}");
}

#[test]
fn a_document_that_is_wrong_is_complained_of() {
    let wide = "word ".repeat(25);
    let bad = [
        (wide.as_str(), "columns"),
        ("one ` alone", "backquote"),
        ("[there](no/such/file.md)", "does not exist"),
        ("`domus teleport NAME`", "no such command"),
        ("`domus disk shred FILE`", "no such command"),
        ("`domus create FILE [--twice]`", "no --twice"),
        ("`dom0 --faster`", "no --faster"),
        ("`cargo xtask bench kettle`", "no such command"),
        ("```sh\nA=1 sudo domus list --tall # all\n```", "no --tall"),
        ("`disks[].colour`", "no key"),
        ("`boot.floppy`", "no key"),
        ("`read_mostly`", "no key"),
        ("`\"nets\": [ { \"id\": \"a\", \"colour\": 1 } ]`", "no key"),
        ("```json\n{ \"name\": \"a\", \"boot\": { \"disk\": \"b\" } }\n```", "no key"),
    ];
    let (mut programs, schemas) = (Programs::new(), Schemas::new());
    for (text, complaint) in bad {
        let document = Document::parse(&workspace::root().join("README.md"), text);
        let found = complaints(&document, &mut programs, &schemas);
        assert!(matches!(&found[..], [one] if one.contains(complaint)), "{text}: {found:?}");
    }
}
