//! Operands.

use super::names::{D, Names, P, W};
use super::text::{number, split};

/// An operand of a statement.
#[derive(Clone, Debug, PartialEq)]
pub enum Operand {
    /// A predicate.
    Pred(P),
    /// A negated predicate, `!%p1`.
    NotPred(P),
    /// Two predicates, `%p1|%p2`; `_` is none.
    Pair(Option<P>, Option<P>),
    /// A word.
    Word(W),
    /// A double word.
    Double(D),
    /// A number; floats by their bits.
    Immediate(u64),
    /// `{a, b}`.
    Vector(Vec<Operand>),
    /// `[base+offset]`.
    Memory(Box<Operand>, i64),
    /// `[map, {x, y}]`.
    Tensor(Box<Operand>, Vec<Operand>),
    /// The parameter at an offset.
    Param(usize),
    /// The start of the launch's shared memory.
    Shared,
    /// A table of the module.
    Table(usize),
    /// A special register, such as `%tid.x`.
    Special(String),
    /// Any other word: a label, or something that is not known.
    Name(String),
    /// `_`: a result that nobody wants.
    Sink,
}

/// One operand from its text.
pub(super) fn operand(text: &str, names: &Names) -> Operand {
    let text = text.trim();
    if text == "_" {
        return Operand::Sink;
    }
    if let Some(inner) = enclosed(text, '{', '}') {
        return Operand::Vector(split(inner).into_iter().map(|x| operand(x, names)).collect());
    }
    if let Some(inner) = enclosed(text, '[', ']') {
        return address(inner, names);
    }
    if let Some(n) = number(text) {
        return Operand::Immediate(n);
    }
    if let Some((a, b)) = text.split_once('|') {
        let half = |s: &str| match operand(s, names) {
            Operand::Pred(p) => Some(Some(p)),
            Operand::Sink => Some(None),
            _ => None,
        };
        return match (half(a), half(b)) {
            (Some(a), Some(b)) => Operand::Pair(a, b),
            _ => Operand::Name(text.to_owned()),
        };
    }
    if let Some(Operand::Pred(p)) = text.strip_prefix('!').and_then(|t| names.register(t.trim())) {
        return Operand::NotPred(p);
    }
    if let Some(register) = names.register(text) {
        return register;
    }
    if let Some(offset) = names.params.get(text) {
        return Operand::Param(*offset);
    }
    if let Some(table) = names.tables.get(text) {
        return Operand::Table(*table);
    }
    if names.shared.iter().any(|s| s == text) {
        return Operand::Shared;
    }
    if text.starts_with('%') { Operand::Special(text.to_owned()) } else { Operand::Name(text.to_owned()) }
}

fn enclosed(text: &str, open: char, close: char) -> Option<&str> {
    text.strip_prefix(open)?.strip_suffix(close)
}

/// What stands in brackets: a base with an offset, or a tensor map with coordinates.
fn address(inner: &str, names: &Names) -> Operand {
    if let [map, coordinates] = split(inner)[..] {
        let coordinates = match operand(coordinates, names) {
            Operand::Vector(all) => all,
            one => vec![one],
        };
        return Operand::Tensor(Box::new(operand(map, names)), coordinates);
    }
    let (base, offset) = match inner.rsplit_once('+') {
        Some((base, offset)) => match number(offset.trim()) {
            Some(offset) => (base, offset as i64),
            None => return Operand::Name(inner.to_owned()),
        },
        None => (inner, 0),
    };
    Operand::Memory(Box::new(operand(base, names)), offset)
}
