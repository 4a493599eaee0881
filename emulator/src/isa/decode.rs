//! From a statement to an instruction: operands, constants, and which table knows the instruction.

use super::name::Name;
use super::registers::{Lane, Registers};
use super::{Addr, Base, Inst, Kernel, Op, Together};
use super::{compare, convert, float, integer, matrix, memory, sync};
use crate::fault::{Fault, Result, fault};
use crate::ptx::{Counts, D, Entry, Operand, P, Statement, W};
use std::collections::HashMap;

/// Decodes a kernel; `tables` are the addresses of the module's tables.
pub fn kernel(entry: &Entry, tables: &[u64]) -> Kernel {
    let mut decoder = Decoder { entry, tables, counts: entry.registers, words: HashMap::new(), doubles: HashMap::new(), before: vec![] };
    let (mut code, mut starts) = (Vec::new(), Vec::with_capacity(entry.statements.len()));
    for (index, statement) in entry.statements.iter().enumerate() {
        starts.push(code.len());
        decoder.before.clear();
        let (guard, (together, op)) = decoder.statement(statement).unwrap_or_else(|e| (None, (None, Op::Unknown(e.to_string()))));
        code.extend(decoder.before.drain(..).map(|op| Inst { guard: None, together: None, op, statement: index }));
        code.push(Inst { guard, together, op, statement: index });
    }
    starts.push(code.len());
    code.push(Inst { guard: None, together: None, op: Op::Exit, statement: entry.statements.len() });
    for inst in &mut code {
        if let Op::Branch(target) = &mut inst.op {
            // A label stands before a statement or at the end.
            *target = starts.get(*target).copied().unwrap_or(starts.len());
        }
    }
    Kernel {
        name: entry.name.clone(),
        code,
        statements: entry.statements.iter().map(|s| (s.line, s.text.clone())).collect(),
        params: entry.params.clone(),
        max_threads: entry.max_threads,
        registers: decoder.counts,
        words: decoder.words.iter().map(|(value, r)| (*r, *value)).collect(),
        doubles: decoder.doubles.iter().map(|(value, r)| (*r, *value)).collect(),
    }
}

/// What an instruction does, and which lanes run it together.
pub(super) type Decoded = (Option<Together>, Op);

/// What the statements of a kernel share while they are decoded.
pub(super) struct Decoder<'a> {
    entry: &'a Entry,
    /// Addresses of the module's tables.
    pub(super) tables: &'a [u64],
    counts: Counts,
    words: HashMap<u32, W>,
    /// Registers that hold constants of 64 bits.
    pub(super) doubles: HashMap<u64, D>,
    /// What an operand needs before its instruction runs.
    pub(super) before: Vec<Op>,
}

impl Decoder<'_> {
    fn statement(&mut self, statement: &Statement) -> Result<(Option<(P, bool)>, Decoded)> {
        let guard = match &statement.guard {
            None => None,
            Some((Operand::Pred(p), negated)) => Some((*p, *negated)),
            Some((other, _)) => fault!("a guard of {other:?}"),
        };
        let segments: Vec<&str> = statement.op.split('.').collect();
        let mut cx = Cx { decoder: self, args: &statement.args, op: &statement.op, segments: &segments };
        Ok((guard, instruction(&mut cx)?))
    }

    pub(super) fn new_word(&mut self) -> W {
        self.counts.w += 1;
        W(self.counts.w - 1)
    }

    pub(super) fn new_double(&mut self) -> D {
        self.counts.d += 1;
        D(self.counts.d - 1)
    }

    pub(super) fn new_pred(&mut self) -> P {
        self.counts.p += 1;
        P(self.counts.p - 1)
    }
}

fn instruction(cx: &mut Cx) -> Result<Decoded> {
    let alone = |op| Ok((None, op));
    match cx.segment(0) {
        "add" | "sub" | "mul" | "mad" | "fma" | "div" | "rem" | "min" | "max" | "neg" | "abs" => match cx.last() {
            "f32" | "f64" | "f16x2" | "bf16x2" => alone(float::arithmetic(cx)?),
            _ => alone(integer::arithmetic(cx)?),
        },
        "sqrt" | "rcp" | "ex2" | "lg2" => alone(float::function(cx)?),
        "and" | "or" | "xor" | "not" => alone(integer::logic(cx)?),
        "shl" | "shr" | "shf" | "bfe" | "popc" | "clz" | "brev" | "bfind" | "prmt" | "lop3" => alone(integer::bits(cx)?),
        "mov" | "cvta" => alone(compare::mov(cx)?),
        "setp" => alone(compare::setp(cx)?),
        "selp" => alone(compare::selp(cx)?),
        "cvt" => alone(convert::cvt(cx)?),
        "ld" => alone(memory::load(cx)?),
        "st" => alone(memory::store(cx)?),
        "atom" | "red" => alone(memory::atomic(cx)?),
        "cp" => alone(memory::copy(cx)?),
        "mbarrier" => alone(memory::mbarrier(cx)?),
        "mapa" => alone(Op::Mapa(cx.to(0)?, cx.word(1)?, cx.word(2)?)),
        "bra" => alone(Op::Branch(cx.label(0)?)),
        "ret" | "exit" => alone(Op::Exit),
        "bar" | "barrier" | "shfl" | "vote" | "redux" | "elect" | "setmaxnreg" => sync::decode(cx),
        "wgmma" | "mma" | "ldmatrix" => matrix::decode(cx),
        "fence" if cx.op.starts_with("fence.proxy.async") => alone(Op::ProxyFence),
        // Caches are not modelled: a policy is a number that nobody reads.
        "fence" | "membar" | "griddepcontrol" | "prefetch" | "prefetchu" | "nanosleep" | "createpolicy" => alone(Op::Nothing),
        _ => cx.unknown(),
    }
}

/// A statement while it is decoded.
pub(super) struct Cx<'a, 'b> {
    /// The kernel.
    pub(super) decoder: &'a mut Decoder<'b>,
    /// Operands.
    pub(super) args: &'a [Operand],
    /// The instruction with its modifiers.
    pub(super) op: &'a str,
    /// Its parts between dots.
    pub(super) segments: &'a [&'a str],
}

impl<'a> Cx<'a, '_> {
    /// The instruction's `i`-th part between dots, empty past the last.
    pub(super) fn segment(&self, i: usize) -> &'a str {
        self.segments.get(i).copied().unwrap_or_default()
    }

    /// Its last part, mostly a type.
    pub(super) fn last(&self) -> &'a str {
        self.segments.last().copied().unwrap_or_default()
    }

    /// The part before that.
    pub(super) fn before_last(&self) -> &'a str {
        self.segments.iter().rev().nth(1).copied().unwrap_or_default()
    }

    /// Whether it has a modifier.
    pub(super) fn has(&self, modifier: &str) -> bool {
        self.segments.contains(&modifier)
    }

    /// Refuses modifiers other than these between the name and the type: an unknown one may change the result.
    pub(super) fn only(&self, allowed: &[&str]) -> Result<()> {
        let middle = self.segments.get(1..self.segments.len().saturating_sub(1)).unwrap_or_default();
        match middle.iter().find(|m| !allowed.contains(m)) {
            Some(m) => fault!("the modifier .{m} is not known here"),
            None => Ok(()),
        }
    }

    /// An instruction that no table has.
    pub(super) fn unknown<T>(&self) -> Result<T> {
        fault!("no such instruction is known")
    }

    /// An operand.
    pub(super) fn arg(&self, i: usize) -> Result<&Operand> {
        self.args.get(i).ok_or_else(|| Fault::new(format!("operand {} is missing", i + 1)))
    }

    /// A constant operand.
    pub(super) fn immediate(&self, i: usize) -> Result<u64> {
        match self.arg(i)? {
            Operand::Immediate(value) => Ok(*value),
            other => fault!("{other:?} is no constant"),
        }
    }

    /// The statement that a label stands before.
    pub(super) fn label(&self, i: usize) -> Result<usize> {
        match self.arg(i)? {
            Operand::Name(name) => self.decoder.entry.labels.get(name).copied().ok_or_else(|| Fault::new(format!("no label {name}"))),
            other => fault!("{other:?} is no label"),
        }
    }

    /// A register for the result in operand `i`; one of its own where nobody wants it.
    pub(super) fn to<N: Name>(&mut self, i: usize) -> Result<N> {
        let operand = self.arg(i)?.clone();
        self.destination(&operand)
    }

    /// A register for a result.
    pub(super) fn destination<N: Name>(&mut self, operand: &Operand) -> Result<N> {
        match operand {
            Operand::Sink => Ok(N::fresh(self)),
            other => N::register(other).ok_or_else(|| Fault::new(format!("{other:?} cannot hold the result"))),
        }
    }

    /// A word that is read.
    pub(super) fn word(&mut self, i: usize) -> Result<W> {
        let operand = self.arg(i)?.clone();
        self.source(&operand)
    }

    /// A double word that is read.
    pub(super) fn double(&mut self, i: usize) -> Result<D> {
        let operand = self.arg(i)?.clone();
        self.source(&operand)
    }

    /// A predicate that is read.
    pub(super) fn pred(&mut self, i: usize) -> Result<P> {
        let operand = self.arg(i)?.clone();
        self.source(&operand)
    }

    /// A register that holds an operand.
    pub(super) fn source<N: Name>(&mut self, operand: &Operand) -> Result<N> {
        match N::register(operand) {
            Some(register) => Ok(register),
            None => N::other(self, operand)?.ok_or_else(|| Fault::new(format!("{operand:?} cannot be read here"))),
        }
    }

    /// The elements of a vector, or the operand itself.
    pub(super) fn elements(&self, i: usize) -> Result<Vec<Operand>> {
        Ok(match self.arg(i)? {
            Operand::Vector(all) => all.clone(),
            one => vec![one.clone()],
        })
    }

    /// A fixed number of words that are read.
    pub(super) fn words<const N: usize>(&mut self, i: usize) -> Result<[W; N]> {
        let all = self.elements(i)?;
        let words = all.iter().map(|o| self.source(o)).collect::<Result<Vec<W>>>()?;
        words.try_into().map_err(|_| Fault::new(format!("operand {} has not {N} elements", i + 1)))
    }

    /// An address in brackets.
    pub(super) fn address(&mut self, i: usize) -> Result<Addr> {
        let operand = self.arg(i)?.clone();
        let Operand::Memory(base, offset) = operand else { fault!("{operand:?} is no address") };
        let base = match *base {
            Operand::Word(w) => Base::Word(w),
            Operand::Double(d) => Base::Double(d),
            Operand::Shared => return Ok(Addr { base: Base::None, offset: offset.wrapping_add(i64::from(crate::machine::SHARED_BASE)) }),
            other => Base::Double(self.source(&other)?),
        };
        Ok(Addr { base, offset })
    }

    /// A constant in a register.
    pub(super) fn constant(&mut self, value: u32) -> W {
        match self.decoder.words.get(&value) {
            Some(w) => *w,
            None => {
                let w = self.decoder.new_word();
                self.decoder.words.insert(value, w);
                w
            }
        }
    }

    /// A closure over one operand.
    pub(super) fn one<A: Lane, R: Lane>(&mut self, f: impl Fn(A) -> R + Send + Sync + 'static) -> Result<Op> {
        let (d, a) = (self.to(0)?, self.read::<A>(1)?);
        Ok(scalar(move |r, m| r.map1::<A, R>(d, a, m, &f)))
    }

    /// A closure over two operands.
    pub(super) fn two<A: Lane, B: Lane, R: Lane>(&mut self, f: impl Fn(A, B) -> R + Send + Sync + 'static) -> Result<Op> {
        let (d, a, b) = (self.to(0)?, self.read::<A>(1)?, self.read::<B>(2)?);
        Ok(scalar(move |r, m| r.map2::<A, B, R>(d, (a, b), m, &f)))
    }

    /// A closure over three operands.
    pub(super) fn three<A: Lane, B: Lane, C: Lane, R: Lane>(&mut self, f: impl Fn(A, B, C) -> R + Send + Sync + 'static) -> Result<Op> {
        let (d, a, b, c) = (self.to(0)?, self.read::<A>(1)?, self.read::<B>(2)?, self.read::<C>(3)?);
        Ok(scalar(move |r, m| r.map3::<A, B, C, R>(d, (a, b, c), m, &f)))
    }

    fn read<A: Lane>(&mut self, i: usize) -> Result<A::Name> {
        let operand = self.arg(i)?.clone();
        self.source(&operand)
    }
}

/// An instruction that acts on each lane alone.
pub(super) fn scalar(f: impl Fn(&mut Registers, u32) + Send + Sync + 'static) -> Op {
    Op::Scalar(Box::new(f))
}
