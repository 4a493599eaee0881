//! Registers as operands: which operand is one, and what else can be read into one.

use super::decode::{Cx, scalar};
use super::{Op, Special};
use crate::fault::{Fault, Result, fault};
use crate::ptx::{D, Operand, P, W};

/// A register name of one of the three files.
pub(super) trait Name: Copy + Send + Sync + 'static {
    /// The register that an operand is.
    fn register(operand: &Operand) -> Option<Self>;
    /// A register of its own.
    fn fresh(cx: &mut Cx<'_, '_>) -> Self;
    /// A register that will hold what another operand stands for, if it can be read so.
    fn other(cx: &mut Cx<'_, '_>, operand: &Operand) -> Result<Option<Self>>;
}

impl Name for W {
    fn register(operand: &Operand) -> Option<Self> {
        if let Operand::Word(w) = operand { Some(*w) } else { None }
    }
    fn fresh(cx: &mut Cx<'_, '_>) -> Self {
        cx.decoder.new_word()
    }
    fn other(cx: &mut Cx<'_, '_>, operand: &Operand) -> Result<Option<Self>> {
        Ok(match operand {
            Operand::Immediate(value) => Some(cx.constant(*value as u32)),
            Operand::Shared => Some(cx.constant(crate::machine::SHARED_BASE)),
            // A wider register gives its low half.
            Operand::Double(d) => {
                let (d, w) = (*d, cx.decoder.new_word());
                cx.decoder.before.push(scalar(move |r, m| r.map1(w, d, m, |x: u64| x as u32)));
                Some(w)
            }
            Operand::Special(name) => {
                let w = cx.decoder.new_word();
                cx.decoder.before.push(Op::Special(special(name)?, w));
                Some(w)
            }
            _ => None,
        })
    }
}

impl Name for D {
    fn register(operand: &Operand) -> Option<Self> {
        if let Operand::Double(d) = operand { Some(*d) } else { None }
    }
    fn fresh(cx: &mut Cx<'_, '_>) -> Self {
        cx.decoder.new_double()
    }
    fn other(cx: &mut Cx<'_, '_>, operand: &Operand) -> Result<Option<Self>> {
        let value = match operand {
            Operand::Immediate(value) => *value,
            Operand::Table(i) => *cx.decoder.tables.get(*i).ok_or_else(|| Fault::new("a table that was not loaded"))?,
            Operand::Special(_) => {
                let (w, d) = (W::other(cx, operand)?, cx.decoder.new_double());
                let Some(w) = w else { return Ok(None) };
                cx.decoder.before.push(scalar(move |r, m| r.map1(d, w, m, |x: u32| u64::from(x))));
                return Ok(Some(d));
            }
            _ => return Ok(None),
        };
        if let Some(d) = cx.decoder.doubles.get(&value) {
            return Ok(Some(*d));
        }
        let d = cx.decoder.new_double();
        cx.decoder.doubles.insert(value, d);
        Ok(Some(d))
    }
}

impl Name for P {
    fn register(operand: &Operand) -> Option<Self> {
        if let Operand::Pred(p) = operand { Some(*p) } else { None }
    }
    fn fresh(cx: &mut Cx<'_, '_>) -> Self {
        cx.decoder.new_pred()
    }
    fn other(cx: &mut Cx<'_, '_>, operand: &Operand) -> Result<Option<Self>> {
        let Operand::NotPred(p) = *operand else { return Ok(None) };
        let not = cx.decoder.new_pred();
        cx.decoder.before.push(scalar(move |r, m| r.map1(not, p, m, |x: bool| !x)));
        Ok(Some(not))
    }
}

fn special(name: &str) -> Result<Special> {
    Ok(match name {
        "%tid.x" => Special::Tid,
        "%ntid.x" => Special::Ntid,
        "%tid.y" | "%tid.z" => Special::Zero,
        "%ntid.y" | "%ntid.z" => Special::One,
        "%ctaid.x" => Special::Ctaid(0),
        "%ctaid.y" => Special::Ctaid(1),
        "%ctaid.z" => Special::Ctaid(2),
        "%nctaid.x" => Special::Nctaid(0),
        "%nctaid.y" => Special::Nctaid(1),
        "%nctaid.z" => Special::Nctaid(2),
        "%cluster_ctarank" => Special::ClusterRank,
        "%cluster_nctarank" => Special::ClusterSize,
        "%laneid" => Special::Lane,
        "%clock" | "%clock64" => Special::Clock,
        other => fault!("no special register {other} is known"),
    })
}
