//! What the audit reads from PTX text, per entry.

use super::scan::{Item, Kind, Module, Statement, blank_comments, is_symbol, words};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// How often each instruction form occurs in an entry. Keys are opcodes with the operands that tell forms apart.
pub type Histogram = BTreeMap<String, u32>;

/// Facts of one entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EntryFacts {
    /// `.maxntid`, the product of its dimensions.
    pub threads: Option<u32>,
    /// `.minnctapersm`.
    pub blocks_per_sm: Option<u32>,
    /// Matrix instructions (`wgmma.mma_async`).
    pub wgmma: u32,
    /// Block and named barriers (`bar`, `barrier`).
    pub barriers: u32,
    /// Operations on shared-memory barriers (`mbarrier`).
    pub mbarrier: u32,
    /// Bulk copies (`cp.async.bulk`).
    pub tma: u32,
    /// Changes of the register budget.
    pub setmaxnreg: u32,
    /// Whether it touches local memory.
    pub local: bool,
    /// What is declared around the body.
    pub declared: Declarations,
    /// Instructions that must run as often as the source says: all of the above, every asynchronous copy, and every `.aligned`
    /// or `.sync` one.
    pub counted: Histogram,
}

/// What an entry declares: its contract with the launch and with ptxas.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Declarations {
    /// Performance directives, such as `.maxntid 384 1 1`.
    pub bounds: Vec<String>,
    /// Parameters, such as `.align 8 .b8 152`.
    pub parameters: Vec<String>,
    /// Variables in shared memory, its own or of its module, such as `.extern .shared .align 1024 .b8 dyn_smem`.
    pub shared: Vec<String>,
}

/// Facts of every entry of a module.
pub fn of(module: &Module) -> BTreeMap<String, EntryFacts> {
    let with_variables = |item: &Item| {
        let mut facts = entry(item);
        let used = module.reachable(&[&item.name]);
        let variables = module.items.iter().filter(|i| i.kind == Kind::Variable && used.contains(i.name.as_str()));
        facts.declared.shared.extend(variables.filter_map(|i| shared(&blank_comments(&i.text))));
        facts.declared.shared.sort();
        facts
    };
    module.items.iter().filter(|i| i.kind == Kind::Entry).map(|i| (i.name.clone(), with_variables(i))).collect()
}

/// Facts of one entry, as far as its own text tells them.
pub fn entry(item: &Item) -> EntryFacts {
    let signature = blank_comments(item.signature());
    let statements = item.statements();
    let count = |prefix: &str| statements.iter().filter(|s| s.opcode.starts_with(prefix)).map(|_| 1u32).sum();
    let mut counted = Histogram::new();
    for key in statements.iter().filter_map(key) {
        *counted.entry(key).or_default() += 1;
    }
    EntryFacts {
        threads: bound(&signature, ".maxntid"),
        blocks_per_sm: bound(&signature, ".minnctapersm"),
        wgmma: count("wgmma.mma_async"),
        barriers: statements.iter().filter(|s| is_barrier(&s.opcode)).map(|_| 1u32).sum(),
        mbarrier: count("mbarrier."),
        tma: count("cp.async.bulk."),
        setmaxnreg: count("setmaxnreg."),
        local: words(&blank_comments(&item.text)).any(|w| w.split('.').any(|part| part == "local") || w.starts_with("__local_depot")),
        declared: Declarations {
            bounds: directives(&signature),
            parameters: parameters(&signature),
            shared: blank_comments(&item.text).split([';', '{', '}']).filter_map(shared).collect(),
        },
        counted,
    }
}

/// The declaration, if it is one of shared memory.
fn shared(declaration: &str) -> Option<String> {
    let text = words(declaration).collect::<Vec<_>>().join(" ");
    (text.starts_with('.') && text.split(' ').any(|w| w == ".shared")).then_some(text)
}

/// Types of the parameters, without their names.
fn parameters(signature: &str) -> Vec<String> {
    let list = signature.split_once('(').and_then(|(_, rest)| rest.split_once(')')).map_or("", |(list, _)| list);
    let unnamed = |p: &str| words(p).filter(|w| *w != ".param" && !is_symbol(w)).collect::<Vec<_>>().join(" ");
    list.split(',').map(unnamed).filter(|p| !p.is_empty()).collect()
}

/// Directives between the parameters and the body, each with its numbers.
fn directives(signature: &str) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    for word in words(signature.rsplit_once(')').map_or("", |(_, rest)| rest)) {
        match out.last_mut() {
            Some(last) if !word.starts_with('.') => *last += &format!(" {word}"),
            _ => out.push(word.to_owned()),
        }
    }
    out.sort();
    out
}

/// Product of the numbers after `directive` (`.maxntid 384, 1, 1` gives 384).
fn bound(signature: &str, directive: &str) -> Option<u32> {
    let mut after = words(signature).skip_while(|w| *w != directive).skip(1).map_while(|w| w.parse::<u32>().ok());
    let first = after.next()?;
    after.try_fold(first, u32::checked_mul)
}

fn is_barrier(opcode: &str) -> bool {
    matches!(opcode.split('.').next(), Some("bar" | "barrier"))
}

/// The histogram key of an instruction whose count matters; `@` in front when it is predicated.
fn key(s: &Statement) -> Option<String> {
    let barrier = is_barrier(&s.opcode);
    let converged = s.opcode.split('.').any(|part| part == "aligned" || part == "sync");
    if !barrier && !converged && !s.opcode.starts_with("mbarrier.") && !s.opcode.starts_with("cp.async") {
        return None;
    }
    let literal = s.operands.chars().all(|c| c.is_ascii_digit() || c == ',' || c == ' ');
    let detail = if s.opcode.starts_with("wgmma.mma_async") {
        if a_in_registers(&s.operands) { " A in registers" } else { " A in shared memory" }.to_owned()
    } else if literal && !s.operands.is_empty() {
        format!(" {}", s.operands)
    } else {
        String::new()
    };
    Some(format!("{}{}{detail}", if s.predicated { "@ " } else { "" }, s.opcode))
}

/// Whether the operand after the accumulator list is a register list too.
fn a_in_registers(operands: &str) -> bool {
    operands.split_once('}').is_some_and(|(_, rest)| rest.trim_start_matches([',', ' ']).starts_with('{'))
}
