//! A reader of PTX modules: items at module level, statements inside a body.
//!
//! It knows the little grammar needed to cut a module into entries and to count instructions. It does not know what
//! instructions mean; ptxas does.

use anyhow::{Result, bail};
use std::collections::BTreeSet;

/// What an item at module level is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A kernel: `.entry` with a body.
    Entry,
    /// A device function with a body.
    Function,
    /// A device function that is only declared.
    Declaration,
    /// A variable in any state space.
    Variable,
}

/// One item at module level.
#[derive(Clone, Debug)]
pub struct Item {
    /// What it is.
    pub kind: Kind,
    /// Its symbol.
    pub name: String,
    /// Its text, comments inside it included.
    pub text: String,
}

/// A PTX module.
#[derive(Clone, Debug, Default)]
pub struct Module {
    /// Operand of `.version`.
    pub version: String,
    /// Operand of `.target`.
    pub target: String,
    /// Operand of `.address_size`.
    pub address_size: String,
    /// Everything else, in the order of the text.
    pub items: Vec<Item>,
}

/// One instruction of a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statement {
    /// Whether it is predicated (`@p` or `@!p`).
    pub predicated: bool,
    /// The opcode with all its modifiers.
    pub opcode: String,
    /// The operands as written, white space collapsed.
    pub operands: String,
}

/// `text` with every comment overwritten by blanks: byte offsets stay the same.
pub fn blank_comments(text: &str) -> String {
    enum In {
        Code,
        Quoted,
        Line,
        Block,
    }
    let mut out = String::with_capacity(text.len());
    let mut state = In::Code;
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        let next = chars.peek().copied();
        let mut pair = |out: &mut String| {
            chars.next();
            out.push_str("  ");
        };
        match state {
            In::Code => match (c, next) {
                ('/', Some('/')) => {
                    pair(&mut out);
                    state = In::Line;
                }
                ('/', Some('*')) => {
                    pair(&mut out);
                    state = In::Block;
                }
                _ => {
                    if c == '"' {
                        state = In::Quoted;
                    }
                    out.push(c);
                }
            },
            In::Quoted => {
                if c == '"' {
                    state = In::Code;
                }
                out.push(c);
            }
            In::Block if c == '*' && next == Some('/') => {
                pair(&mut out);
                state = In::Code;
            }
            In::Line if c == '\n' => {
                out.push(c);
                state = In::Code;
            }
            In::Line | In::Block => out.extend(std::iter::repeat_n(if c == '\n' { '\n' } else { ' ' }, c.len_utf8())),
        }
    }
    out
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '$' | '%')
}

/// Identifiers, directives, opcodes and numbers of comment-free PTX, each with its leading `.` or `%`.
pub fn words(code: &str) -> impl Iterator<Item = &str> {
    code.split(|c| !is_word(c)).filter(|w| !w.is_empty())
}

/// Whether a word can be a symbol rather than a directive or a number.
pub fn is_symbol(word: &str) -> bool {
    word.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_' || c == '$')
}

/// Reads a module.
///
/// # Errors
/// On text that is not a PTX module: an item without an end or a name, a directive unknown at module level.
pub fn parse(text: &str) -> Result<Module> {
    let code = blank_comments(text);
    let mut module = Module::default();
    let mut at = 0;
    loop {
        let Some(rest) = code.get(at..) else { bail!("PTX cut inside a character at byte {at}") };
        let blank = rest.len() - rest.trim_start().len();
        at += blank;
        let rest = rest.trim_start();
        if rest.is_empty() {
            break;
        }
        let line = rest.lines().next().unwrap_or_default();
        let first = words(line).next().unwrap_or_default();
        let header = match first {
            ".version" => Some(&mut module.version),
            ".target" => Some(&mut module.target),
            ".address_size" => Some(&mut module.address_size),
            _ => None,
        };
        if let Some(field) = header {
            *field = line.trim().strip_prefix(first).unwrap_or_default().trim().to_owned();
            at += line.len();
            continue;
        }
        if !matches!(first, ".visible" | ".weak" | ".extern" | ".common" | ".entry" | ".func" | ".global" | ".shared" | ".const") {
            bail!("unexpected text at module level of the PTX: `{line}`");
        }
        let (kind, length) = item(rest)?;
        let head = rest.get(..length).unwrap_or_default();
        let name = symbol(kind, head).ok_or_else(|| anyhow::anyhow!("an item without a name in the PTX: `{line}`"))?;
        module.items.push(Item { kind, name, text: text.get(at..at + length).unwrap_or_default().to_owned() });
        at += length;
    }
    if module.version.is_empty() || module.target.is_empty() || module.address_size.is_empty() {
        bail!("the PTX lacks one of .version, .target and .address_size");
    }
    Ok(module)
}

/// Kind and length of the item that `code` starts with.
fn item(code: &str) -> Result<(Kind, usize)> {
    let head = code.split(['{', ';', '=', '[']).next().unwrap_or_default();
    let has = |directive| words(head).any(|w| w == directive);
    let (entry, function) = (has(".entry"), has(".func"));
    let (mut parens, mut braces) = (0usize, 0usize);
    for (i, c) in code.char_indices() {
        match c {
            '(' => parens += 1,
            ')' => parens = parens.saturating_sub(1),
            '{' => braces += 1,
            '}' => {
                braces = braces.saturating_sub(1);
                if braces == 0 && (entry || function) {
                    return Ok((if entry { Kind::Entry } else { Kind::Function }, i + 1));
                }
            }
            ';' if parens == 0 && braces == 0 => return Ok((if entry || function { Kind::Declaration } else { Kind::Variable }, i + 1)),
            _ => {}
        }
    }
    bail!("an item without an end in the PTX: `{}`", code.lines().next().unwrap_or_default())
}

/// The symbol an item defines: of a function the last one outside parentheses before the body, of a variable the first.
fn symbol(kind: Kind, code: &str) -> Option<String> {
    if kind == Kind::Variable {
        return words(code).find(|w| is_symbol(w)).map(str::to_owned);
    }
    let head = code.split('{').next().unwrap_or_default();
    let mut depth = 0usize;
    let outside: String = head
        .chars()
        .map(|c| {
            match c {
                '(' => depth += 1,
                ')' => depth = depth.saturating_sub(1),
                _ if depth == 0 => return c,
                _ => {}
            }
            ' '
        })
        .collect();
    words(&outside).filter(|w| is_symbol(w)).last().map(str::to_owned)
}

impl Module {
    /// The item called `name`.
    pub fn item(&self, name: &str) -> Option<&Item> {
        self.items.iter().find(|item| item.name == name)
    }

    /// Names of the items that `roots` use, directly or through others; the roots included.
    pub fn reachable<'a>(&'a self, roots: &[&'a str]) -> BTreeSet<&'a str> {
        let mut seen: BTreeSet<&str> = BTreeSet::new();
        let mut open: Vec<&str> = roots.to_vec();
        while let Some(name) = open.pop() {
            let Some(item) = self.item(name) else { continue };
            if seen.insert(&item.name) {
                let code = blank_comments(&item.text);
                let used: BTreeSet<&str> = words(&code).collect();
                open.extend(self.items.iter().map(|i| i.name.as_str()).filter(|n| used.contains(n)));
            }
        }
        seen
    }
}

impl Item {
    /// The text before the body: linkage, name, parameters, performance directives.
    pub fn signature(&self) -> &str {
        let code = blank_comments(&self.text);
        code.find('{').and_then(|i| self.text.get(..i)).unwrap_or(&self.text)
    }

    /// The instructions of the body, nested scopes (inline asm has them) included; directives and labels left out.
    pub fn statements(&self) -> Vec<Statement> {
        let code = blank_comments(&self.text);
        let body = code.find('{').and_then(|i| code.get(i..)).unwrap_or_default();
        let mut out = Vec::new();
        let (mut text, mut lists) = (String::new(), 0usize);
        let mut chars = body.chars().peekable();
        while let Some(c) = chars.next() {
            let fresh = text.trim().is_empty();
            match c {
                // A brace where a statement would begin opens or closes a scope; elsewhere it is a register list.
                '{' | '}' if fresh => text.clear(),
                '{' => {
                    lists += 1;
                    text.push(c);
                }
                '}' => {
                    lists = lists.saturating_sub(1);
                    text.push(c);
                }
                ':' if chars.peek() != Some(&':') && !text.contains('.') && text.trim().chars().all(is_word) => text.clear(),
                ';' if lists == 0 => {
                    out.extend(statement(&text));
                    text.clear();
                }
                _ => text.push(c),
            }
        }
        out
    }
}

/// Reads one statement without its `;`. Directives give nothing.
fn statement(text: &str) -> Option<Statement> {
    let mut rest = text.trim();
    let predicated = rest.starts_with('@');
    if predicated {
        rest = rest.split_once(char::is_whitespace)?.1.trim_start();
    }
    let (opcode, operands) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
    if opcode.is_empty() || opcode.starts_with('.') {
        return None;
    }
    let operands = operands.split_whitespace().collect::<Vec<_>>().join(" ");
    Some(Statement { predicated, opcode: opcode.to_owned(), operands })
}
