//! The syntax of xl.cfg(5): assignments of numbers, strings and lists.
//!
//! ```text
//! file      = { statement }
//! statement = [ name ( "=" | "+=" ) value ] ( newline | ";" )
//! value     = number | string | "[" [ value { "," value } [ "," ] ] "]"
//! ```
//!
//! Within brackets line breaks are nothing, and `#` begins a comment everywhere but in a string.

use std::iter::Peekable;
use std::str::Chars;

use crate::ImportError;
use crate::translate::quoted;

/// Lists within lists within …: xl itself has one level, `vnuma` two.
const MAX_DEPTH: u32 = 8;

/// Settings that are read: xl.cfg(5) knows some 200.
const MAX_SETTINGS: usize = 1000;

/// A value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// A number or a string: xl takes either for the other.
    Text(String),
    /// A list; each value with its line.
    List(Vec<(u32, Value)>),
}

/// `key = value`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// Where it begins, counted from 1.
    pub line: u32,
    /// What is set.
    pub key: String,
    /// To what.
    pub value: Value,
}

struct Reader<'a> {
    chars: Peekable<Chars<'a>>,
    line: u32,
}

/// Reads every setting. One that is there twice is as xl has it: the last one counts, `+=` adds to a list.
///
/// # Errors
/// [`ImportError::Syntax`].
pub fn settings(text: &str) -> Result<Vec<Setting>, ImportError> {
    let mut reader = Reader { chars: text.chars().peekable(), line: 1 };
    let mut settings: Vec<Setting> = Vec::new();
    loop {
        reader.space(true);
        let Some(first) = reader.chars.peek().copied() else { return Ok(settings) };
        if first == ';' {
            reader.next();
            continue;
        }
        let line = reader.line;
        let key = reader.word(|c| c.is_ascii_alphanumeric() || c == '_');
        if key.is_empty() {
            return Err(reader.refuse(format!("{:?} begins no setting", quoted(&first.to_string()))));
        }
        reader.space(false);
        let adds = reader.next_if('+');
        if !reader.next_if('=') {
            return Err(reader.refuse(format!("\"{}\" is not followed by =", quoted(&key))));
        }
        let value = reader.value(0)?;
        reader.space(false);
        match reader.chars.peek() {
            None | Some('\n' | ';') => {}
            Some(_) => {
                return Err(reader
                    .refuse(format!("what follows the value of \"{}\" is not understood", quoted(&key))));
            }
        }
        if settings.len() == MAX_SETTINGS {
            return Err(reader.refuse(format!("is setting number {}", MAX_SETTINGS + 1)));
        }
        let before = settings.iter().position(|setting| setting.key == key).map(|n| settings.remove(n));
        let value = match (before, value) {
            (Some(Setting { value: Value::List(mut list), .. }), Value::List(more)) if adds => {
                list.extend(more);
                Value::List(list)
            }
            (Some(Setting { value: Value::Text(text), .. }), Value::Text(more)) if adds => {
                Value::Text(text + &more)
            }
            (_, value) => value,
        };
        settings.push(Setting { line, key, value });
    }
}

impl Reader<'_> {
    fn refuse(&self, problem: String) -> ImportError {
        ImportError::Syntax { line: self.line, problem }
    }

    fn next(&mut self) -> Option<char> {
        let c = self.chars.next();
        self.line += u32::from(c == Some('\n'));
        c
    }

    fn next_if(&mut self, wanted: char) -> bool {
        self.chars.next_if_eq(&wanted).is_some()
    }

    /// Skips blanks and comments, and line breaks if they mean nothing here.
    fn space(&mut self, lines: bool) {
        while let Some(c) = self.chars.peek().copied() {
            match c {
                '\n' if !lines => return,
                '#' => while self.chars.next_if(|c| *c != '\n').is_some() {},
                c if c.is_whitespace() || c == '\u{feff}' => drop(self.next()),
                _ => return,
            }
        }
    }

    fn word(&mut self, is_part: impl Fn(char) -> bool) -> String {
        let mut word = String::new();
        while let Some(c) = self.chars.next_if(|c| is_part(*c)) {
            word.push(c);
        }
        word
    }

    fn value(&mut self, depth: u32) -> Result<Value, ImportError> {
        self.space(depth > 0);
        match self.chars.peek().copied() {
            Some(quote @ ('"' | '\'')) => {
                self.next();
                let mut text = String::new();
                loop {
                    match self.chars.peek() {
                        // xl knows no string of several lines.
                        None | Some('\n') => {
                            return Err(self.refuse(format!("a string is not closed by {quote}")));
                        }
                        Some(c) if *c == quote => break,
                        Some(c) => text.push(*c),
                    }
                    self.next();
                }
                self.next();
                Ok(Value::Text(text))
            }
            Some('[') if depth < MAX_DEPTH => {
                self.next();
                let mut list = Vec::new();
                loop {
                    self.space(true);
                    if self.next_if(']') {
                        return Ok(Value::List(list));
                    }
                    let line = self.line;
                    let value = self.value(depth + 1)?;
                    list.push((line, value));
                    self.space(true);
                    if !self.next_if(',') && self.chars.peek() != Some(&']') {
                        return Err(
                            self.refuse("a list goes on without a comma, or is not closed by ]".into())
                        );
                    }
                }
            }
            Some(c) if c == '-' || c.is_ascii_digit() => {
                Ok(Value::Text(self.word(|c| c == '-' || c.is_ascii_alphanumeric())))
            }
            _ => {
                Err(self
                    .refuse("there is no value: a number, a quoted string or a list [ … ] would do".into()))
            }
        }
    }
}
