//! Registers and the scopes that name them.

use super::operand::Operand;
use std::collections::HashMap;

/// A predicate register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct P(pub u32);
/// A register of up to 32 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct W(pub u32);
/// A register of 64 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct D(pub u32);

/// Registers of each file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Predicates.
    pub p: u32,
    /// Words.
    pub w: u32,
    /// Double words.
    pub d: u32,
}

/// The file that a register type belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum File {
    P,
    W,
    D,
}

impl File {
    fn of(ty: &str) -> Option<Self> {
        Some(match ty {
            ".pred" => Self::P,
            ".b64" | ".u64" | ".s64" | ".f64" => Self::D,
            ".b8" | ".u8" | ".s8" | ".b16" | ".u16" | ".s16" | ".f16" | ".b32" | ".u32" | ".s32" | ".f32" | ".f16x2" => Self::W,
            _ => return None,
        })
    }

    fn register(self, n: u32) -> Operand {
        match self {
            Self::P => Operand::Pred(P(n)),
            Self::W => Operand::Word(W(n)),
            Self::D => Operand::Double(D(n)),
        }
    }
}

/// What `.reg .b32 %r<8>;` declares.
#[derive(Clone, Debug)]
struct Range {
    prefix: String,
    file: File,
    first: u32,
    len: u32,
}

/// One block in braces.
#[derive(Clone, Debug, Default)]
struct Scope {
    single: HashMap<String, Operand>,
    ranges: Vec<Range>,
}

/// Most registers that a range may declare: a text that asks for more than this is no kernel.
const MOST: u32 = 1 << 20;

/// Names in scope.
#[derive(Clone, Debug, Default)]
pub(super) struct Names {
    scopes: Vec<Scope>,
    pub(super) counts: Counts,
    /// Parameters and their offsets.
    pub(super) params: HashMap<String, usize>,
    /// `.extern .shared` arrays: all start where the launch's shared memory does.
    pub(super) shared: Vec<String>,
    /// `.global` arrays.
    pub(super) tables: HashMap<String, usize>,
}

impl Names {
    /// Enters a block.
    pub(super) fn open(&mut self) {
        self.scopes.push(Scope::default());
    }

    /// Leaves a block; says whether it was the outermost.
    pub(super) fn close(&mut self) -> bool {
        self.scopes.pop();
        self.scopes.is_empty()
    }

    /// Declares what follows `.reg`: a type, then names or ranges. What is not understood declares nothing, and its use fails.
    pub(super) fn declare(&mut self, text: &str) {
        let Some((ty, list)) = text.trim().split_once(char::is_whitespace) else { return };
        let Some(file) = File::of(ty) else { return };
        for name in list.split(',').map(str::trim) {
            let (prefix, len) = match name.split_once('<') {
                Some((prefix, len)) => (prefix, len.trim_end_matches('>').parse::<u32>().unwrap_or(0).min(MOST)),
                None => (name, 1),
            };
            let Counts { p, w, d } = &mut self.counts;
            let count = match file {
                File::P => p,
                File::W => w,
                File::D => d,
            };
            let first = *count;
            let Some(next) = first.checked_add(len) else { return };
            *count = next;
            let Some(scope) = self.scopes.last_mut() else { return };
            if name.contains('<') {
                scope.ranges.push(Range { prefix: prefix.to_owned(), file, first, len });
            } else {
                scope.single.insert(name.to_owned(), file.register(first));
            }
        }
    }

    /// The register of a name, innermost scope first.
    pub(super) fn register(&self, name: &str) -> Option<Operand> {
        let digits = name.trim_end_matches(|c: char| c.is_ascii_digit()).len();
        let (prefix, number) = name.split_at(digits);
        let number = number.parse::<u32>().ok();
        self.scopes.iter().rev().find_map(|scope| {
            let in_range = || {
                let n = number?;
                let range = scope.ranges.iter().find(|r| r.prefix == prefix && n < r.len)?;
                Some(range.file.register(range.first + n))
            };
            scope.single.get(name).cloned().or_else(in_range)
        })
    }
}
