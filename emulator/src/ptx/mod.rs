//! PTX text to statements whose names are resolved: registers by number, symbols by kind, labels by place.
//!
//! Only what the structure of the text needs is checked here. A statement whose operands make no sense is kept with its text;
//! it becomes an error when it is executed.

mod names;
mod operand;
mod parse;
mod text;

pub use names::{Counts, D, P, W};
pub use operand::Operand;
pub use parse::module;

use std::collections::HashMap;

/// A module: its kernels and tables of bytes.
#[derive(Clone, Debug, Default)]
pub struct Module {
    /// Kernels.
    pub entries: Vec<Entry>,
    /// Contents of `.global` arrays, in the order of [`Operand::Table`].
    pub tables: Vec<Vec<u8>>,
}

/// One parameter of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Param {
    /// Bytes before it.
    pub offset: usize,
    /// Its bytes.
    pub bytes: usize,
}

/// A kernel.
#[derive(Clone, Debug, Default)]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// Its parameters.
    pub params: Vec<Param>,
    /// Threads of a block that `.maxntid` allows.
    pub max_threads: Option<u32>,
    /// Statements in the order of the text.
    pub statements: Vec<Statement>,
    /// Which statement a label stands before.
    pub labels: HashMap<String, usize>,
    /// Registers of each file.
    pub registers: Counts,
}

/// One statement.
#[derive(Clone, Debug)]
pub struct Statement {
    /// The predicate that guards it, and whether it is negated.
    pub guard: Option<(Operand, bool)>,
    /// Instruction with its modifiers, dots between them.
    pub op: String,
    /// Operands.
    pub args: Vec<Operand>,
    /// Line of the text, from 1.
    pub line: u32,
    /// The statement as it stands there.
    pub text: String,
}
