//! Splitting text.

/// A place in a text, with its line.
pub(super) struct Cursor<'a> {
    rest: &'a str,
    line: u32,
}

impl<'a> Cursor<'a> {
    /// The start of a text.
    pub(super) fn new(text: &'a str) -> Self {
        Self { rest: text, line: 1 }
    }

    /// The line here, from 1.
    pub(super) fn line(&self) -> u32 {
        self.line
    }

    /// What lies ahead.
    pub(super) fn rest(&self) -> &'a str {
        self.rest
    }

    /// Passes everything up to `bytes` from here.
    pub(super) fn advance(&mut self, bytes: usize) -> &'a str {
        let (passed, rest) = self.rest.split_at_checked(bytes).unwrap_or((self.rest, ""));
        self.line += passed.matches('\n').count() as u32;
        self.rest = rest;
        passed
    }

    /// Passes space and semicolons that end nothing.
    pub(super) fn skip_space(&mut self) {
        let trimmed = self.rest.trim_start_matches(|c: char| c.is_whitespace() || c == ';');
        self.advance(self.rest.len() - trimmed.len());
    }

    /// Passes `c` if it comes next.
    pub(super) fn eat(&mut self, c: char) -> bool {
        let found = self.rest.starts_with(c);
        if found {
            self.advance(c.len_utf8());
        }
        found
    }

    /// Passes everything before the first of `stops`, or nothing if none comes.
    pub(super) fn until(&mut self, stops: &[char]) -> Option<&'a str> {
        let at = self.rest.find(stops)?;
        Some(self.advance(at))
    }

    /// Passes a label with its colon.
    pub(super) fn label(&mut self) -> Option<&'a str> {
        let word = self.rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '$' || c == '_'))?;
        let after = self.rest.get(word..)?;
        if word == 0 || !after.starts_with(':') || after.starts_with("::") {
            return None;
        }
        let name = self.advance(word);
        self.eat(':');
        Some(name)
    }
}

/// The text without comments; lines stay where they are.
pub(super) fn without_comments(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for line in text.lines() {
        out.push_str(line.split("//").next().unwrap_or_default());
        out.push('\n');
    }
    out
}

/// The parts between commas that stand in no bracket.
pub(super) fn split(text: &str) -> Vec<&str> {
    let (mut depth, mut start, mut out) = (0i32, 0, Vec::new());
    for (at, c) in text.char_indices() {
        match c {
            '{' | '[' | '(' => depth += 1,
            '}' | ']' | ')' => depth -= 1,
            ',' if depth == 0 => {
                out.push(text.get(start..at).unwrap_or_default().trim());
                start = at + 1;
            }
            _ => {}
        }
    }
    let last = text.get(start..).unwrap_or_default().trim();
    if !last.is_empty() {
        out.push(last);
    }
    out
}

/// A number: decimal, hexadecimal, or the bits of a float (`0f`, `0d`); negative ones in two's complement of 64 bits.
pub(super) fn number(text: &str) -> Option<u64> {
    let hexadecimal = |prefixes: [&str; 2]| prefixes.into_iter().find_map(|p| text.strip_prefix(p));
    if let Some(bits) = hexadecimal(["0f", "0F"]) {
        return u32::from_str_radix(bits, 16).ok().map(u64::from);
    }
    if let Some(bits) = hexadecimal(["0d", "0D"]) {
        return u64::from_str_radix(bits, 16).ok();
    }
    let (negative, digits) = text.strip_prefix('-').map_or((false, text), |t| (true, t));
    let value = match digits.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok()?,
        None => digits.parse().ok()?,
    };
    Some(if negative { value.wrapping_neg() } else { value })
}
