//! Modules, kernels and statements.

use super::names::Names;
use super::operand::operand;
use super::text::{Cursor, number, split, without_comments};
use super::{Entry, Module, Param, Statement};
use crate::fault::{Fault, Result, fault};

/// Largest array of a module.
const MOST_BYTES: usize = 1 << 24;
/// Largest parameter, and so the largest offset of one: 4,352 bytes are what hardware takes of all.
const MOST_PARAM_BYTES: usize = 1 << 16;

/// Parses a module.
///
/// # Errors
/// When a kernel's header or braces cannot be followed.
pub fn module(text: &str) -> Result<Module> {
    let text = without_comments(text);
    let mut cursor = Cursor::new(&text);
    let mut out = Module::default();
    let mut names = Names::default();
    loop {
        cursor.skip_space();
        if cursor.rest().is_empty() {
            return Ok(out);
        }
        if [".version", ".target", ".address_size"].iter().any(|d| cursor.rest().starts_with(d)) {
            cursor.until(&['\n']);
            continue;
        }
        let line = cursor.line();
        let Some(head) = cursor.until(&[';', '{']) else { fault!("line {line}: the text ends within a declaration") };
        if head.contains(".entry") {
            let entry = entry(head, &mut cursor, names.clone())?;
            out.entries.push(entry);
        } else if head.contains(".shared") {
            names.shared.push(array_name(head).to_owned());
        } else if head.contains(".global") {
            let Some(values) = cursor.until(&[';']) else { fault!("line {line}: the text ends within a table") };
            names.tables.insert(array_name(head).to_owned(), out.tables.len());
            out.tables.push(table(head, values).ok_or_else(|| Fault::new(format!("line {line}: no table of bytes: {head}")))?);
        } else if cursor.rest().starts_with('{') {
            fault!("line {line}: {} is not supported", head.trim());
        }
    }
}

/// `name` of `.global .align 1 .b8 name[8] = `.
fn array_name(head: &str) -> &str {
    let declared = head.split('=').next().unwrap_or_default();
    declared.split('[').next().unwrap_or_default().split_whitespace().next_back().unwrap_or_default()
}

/// Bytes of a `.global` array; `values` is its initialiser in braces, or empty.
fn table(head: &str, values: &str) -> Option<Vec<u8>> {
    if !head.split_whitespace().any(|w| w == ".b8" || w == ".u8") {
        return None;
    }
    let (_, bytes) = head.split_once('[')?;
    let bytes = bytes.split(']').next()?.trim().parse::<usize>().ok().filter(|n| *n <= MOST_BYTES)?;
    let mut out = vec![0; bytes];
    let list = values.trim().trim_start_matches('{').trim_end_matches('}');
    for (to, value) in out.iter_mut().zip(split(list)) {
        *to = number(value)? as u8;
    }
    Some(out)
}

/// A kernel, from what stands before its body.
fn entry(head: &str, cursor: &mut Cursor, mut names: Names) -> Result<Entry> {
    let line = cursor.line();
    let bad = || Fault::new(format!("line {line}: the header of a kernel cannot be read: {head}"));
    let (_, rest) = head.split_once(".entry").ok_or_else(bad)?;
    let (name, rest) = rest.split_once('(').unwrap_or((rest, ")"));
    let (params, bounds) = rest.split_once(')').ok_or_else(bad)?;
    let mut out = Entry { name: name.trim().to_owned(), max_threads: max_threads(bounds), ..Entry::default() };
    let mut end = 0usize;
    for text in split(params) {
        let (name, mut param, align) = param(text).ok_or_else(bad)?;
        param.offset = end.checked_next_multiple_of(align).ok_or_else(bad)?;
        end = param.offset + param.bytes;
        names.params.insert(name.to_owned(), param.offset);
        out.params.push(param);
    }
    body(cursor, &mut out, &mut names)?;
    out.registers = names.counts;
    Ok(out)
}

/// Threads of a block that `.maxntid` or `.reqntid` allows.
fn max_threads(bounds: &str) -> Option<u32> {
    let after = bounds.split(".maxntid").nth(1).or_else(|| bounds.split(".reqntid").nth(1))?;
    let list = after.split('.').next().unwrap_or_default();
    list.split(',').map(|n| n.trim().parse::<u32>().ok()).try_fold(1u32, |product, n| product.checked_mul(n?))
}

/// Name, size and alignment of `.param .align 8 .b8 name[152]` or `.param .u64 name`.
fn param(text: &str) -> Option<(&str, Param, usize)> {
    let mut words = text.split_whitespace();
    let last = words.next_back()?;
    let element = match words.clone().find(|w| !matches!(*w, ".param" | ".align") && w.starts_with('.'))? {
        ".u64" | ".b64" | ".s64" | ".f64" => 8,
        ".b8" | ".u8" | ".s8" => 1,
        ".b16" | ".u16" | ".s16" => 2,
        _ => 4,
    };
    words.find(|w| *w == ".align");
    let align = words.next().map_or(Some(element), |w| w.parse::<usize>().ok())?;
    let (name, count) = match last.split_once('[') {
        Some((name, count)) => (name, count.trim_end_matches(']').parse::<usize>().ok()?),
        None => (last, 1),
    };
    let bytes = count.checked_mul(element).filter(|n| *n <= MOST_PARAM_BYTES)?;
    (align.is_power_of_two() && align <= 256).then_some((name, Param { offset: 0, bytes }, align))
}

/// Statements and labels up to the brace that closes the body.
fn body(cursor: &mut Cursor, out: &mut Entry, names: &mut Names) -> Result<()> {
    loop {
        cursor.skip_space();
        let line = cursor.line();
        if cursor.eat('{') {
            names.open();
        } else if cursor.eat('}') {
            if names.close() {
                return Ok(());
            }
        } else if let Some(label) = cursor.label() {
            out.labels.insert(label.to_owned(), out.statements.len());
        } else {
            let Some(text) = cursor.until(&[';']) else { fault!("line {line}: {} does not end", out.name) };
            statement(&text.replace('\n', " "), line, out, names);
        }
    }
}

/// One statement or declaration of registers.
fn statement(text: &str, line: u32, out: &mut Entry, names: &mut Names) {
    let text = text.trim();
    if text.starts_with(".pragma") || text.starts_with(".loc") {
        return;
    }
    if let Some(registers) = text.strip_prefix(".reg") {
        names.declare(registers);
        return;
    }
    let (guard, instruction) = match text.strip_prefix('@') {
        Some(guarded) => {
            let (guard, rest) = guarded.split_once(char::is_whitespace).unwrap_or((guarded, ""));
            let (negated, name) = guard.strip_prefix('!').map_or((false, guard), |name| (true, name));
            (Some((operand(name, names), negated)), rest.trim())
        }
        None => (None, text),
    };
    let (op, args) = instruction.split_once(char::is_whitespace).unwrap_or((instruction, ""));
    let args = split(args).into_iter().map(|a| operand(a, names)).collect();
    out.statements.push(Statement { guard, op: op.to_owned(), args, line, text: text.to_owned() });
}

#[cfg(test)]
mod tests {
    use super::super::{Counts, D, Operand, P, W};
    use super::*;

    const TEXT: &str = "
        .version 8.0
        .target sm_90a
        .extern .shared .align 1024 .b8 dyn_smem[];
        .global .align 1 .b8 $digits[6] = {48, 49, 0x32};
        .visible .entry kernel(
            .param .u32 kernel_param_0,
            .param .align 64 .b8 kernel_param_1[128],
            .param .u64 kernel_param_2 // the last
        )
        .maxntid 64, 2, 1
        .minnctapersm 1
        {
            .reg .pred %p<3>;
            .reg .b32 %r<4>;
            .reg .b64 %rd<2>;
            mov.u32 %r1, dyn_smem;
            { .reg .pred p; .reg .b32 x, %r<2>; setp.ne.u32 p, %r1, -1; @!p mov.b32 x, {%r3, _}; }
        $L_1:
            ld.global.v2.u32 {%r1, %r2}, [%rd1+-16];
            @%p2 bra $L_1;
            cp.async.bulk.tensor.2d.x [%r1], [%rd0, {%r2, 7}], [%r3+8];
            setp.gt.f16x2 %p1|%p2, 0f3F800000, $digits;
            ld.param.u64 %rd1, [kernel_param_2+4];
            mov.u32 %r9, %tid.x;
        }";

    fn parsed() -> Module {
        module(TEXT).unwrap()
    }

    #[test]
    fn headers_and_tables() {
        let m = parsed();
        let e = &m.entries[0];
        assert_eq!(e.name, "kernel");
        assert_eq!(e.params, [Param { offset: 0, bytes: 4 }, Param { offset: 64, bytes: 128 }, Param { offset: 192, bytes: 8 }]);
        assert_eq!(e.max_threads, Some(128));
        assert_eq!(m.tables, [vec![48, 49, 50, 0, 0, 0]]);
        assert_eq!(e.registers, Counts { p: 4, w: 7, d: 2 });
    }

    #[test]
    fn registers_of_inner_scopes_are_others() {
        let e = &parsed().entries[0];
        assert_eq!(e.statements[0].args, [Operand::Word(W(1)), Operand::Shared]);
        // %r1 is the inner one, %r3 is too large for the inner range.
        assert_eq!(e.statements[1].args, [Operand::Pred(P(3)), Operand::Word(W(6)), Operand::Immediate(u64::MAX)]);
        let inner = &e.statements[2];
        assert_eq!(inner.guard, Some((Operand::Pred(P(3)), true)));
        assert_eq!(inner.args, [Operand::Word(W(4)), Operand::Vector(vec![Operand::Word(W(3)), Operand::Sink])]);
        assert_eq!((inner.line, inner.op.as_str()), (18, "mov.b32"));
        // Out of the scope, the outer ones again.
        let memory = Operand::Memory(Box::new(Operand::Double(D(1))), -16);
        assert_eq!(e.statements[3].args, [Operand::Vector(vec![Operand::Word(W(1)), Operand::Word(W(2))]), memory]);
    }

    #[test]
    fn every_kind_of_operand() {
        let e = &parsed().entries[0];
        assert_eq!(e.labels["$L_1"], 3);
        assert_eq!(e.statements[4].args, [Operand::Name("$L_1".to_owned())]);
        let tensor = Operand::Tensor(Box::new(Operand::Double(D(0))), vec![Operand::Word(W(2)), Operand::Immediate(7)]);
        assert_eq!(e.statements[5].args[1], tensor);
        let pair = Operand::Pair(Some(P(1)), Some(P(2)));
        assert_eq!(e.statements[6].args, [pair, Operand::Immediate(0x3f80_0000), Operand::Table(0)]);
        assert_eq!(e.statements[7].args[1], Operand::Memory(Box::new(Operand::Param(192)), 4));
        // Past the declared range: no register.
        assert_eq!(e.statements[8].args, [Operand::Special("%r9".to_owned()), Operand::Special("%tid.x".to_owned())]);
    }

    #[test]
    fn broken_structure_is_an_error() {
        assert!(module(".visible .entry k() { ret;").is_err());
        assert!(module(".visible .entry k() { ret").is_err());
        assert!(module(".visible .entry k(.param .align 3 .b8 x[1]) { ret; }").is_err());
        assert!(module(".func f() { ret; }").is_err());
        assert!(module(".global .b32 x[3];").is_err());
        assert!(module(".global .b8 x[3").is_err());
        assert!(module("").unwrap().entries.is_empty());
    }
}
