//! Barriers, and exchange between the lanes of a warp.

use super::decode::{Cx, Decoded};
use super::memory::Reduce;
use super::{Op, Together};
use crate::fault::{Result, fault};
use crate::ptx::{Operand, W};

/// Which lane a shuffle reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shuffle {
    /// A given one.
    Index,
    /// That whose number differs in given bits.
    Butterfly,
    /// One below.
    Up,
    /// One above.
    Down,
}

/// What a vote asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vote {
    /// Whether a predicate holds in any lane.
    Any,
    /// Whether it holds in all.
    All,
}

/// Instructions that lanes run together.
pub(super) fn decode(cx: &mut Cx) -> Result<Decoded> {
    Ok(match cx.segment(0) {
        "shfl" => shuffle(cx)?,
        "vote" => vote(cx)?,
        "redux" => {
            let reduce = Reduce::of(cx.segment(2), cx.last())?;
            (Some(Together::Mask(cx.word(2)?)), Op::Redux(reduce, cx.to(0)?, cx.word(1)?))
        }
        "elect" => {
            let Operand::Pair(None, Some(p)) = *cx.arg(0)? else { fault!("`_` and a predicate are expected") };
            (Some(Together::Mask(cx.word(1)?)), Op::Elect(p))
        }
        "setmaxnreg" => (Some(Together::Warp), Op::Nothing),
        _ => barrier(cx)?,
    })
}

fn barrier(cx: &mut Cx) -> Result<Decoded> {
    let threads = |cx: &mut Cx, i: usize| if cx.args.len() > i { cx.word(i).map(Some) } else { Ok(None) };
    let op = match cx.op {
        "bar.warp.sync" => return Ok((Some(Together::Mask(cx.word(0)?)), Op::WarpSync)),
        "barrier.cluster.arrive" | "barrier.cluster.arrive.release" => Op::ClusterArrive(true),
        "barrier.cluster.arrive.relaxed" => Op::ClusterArrive(false),
        "barrier.cluster.wait" | "barrier.cluster.wait.acquire" => Op::ClusterWait,
        "bar.sync" | "bar.cta.sync" | "barrier.sync" | "barrier.cta.sync" => Op::BarSync { id: cx.word(0)?, threads: threads(cx, 1)? },
        "bar.arrive" | "bar.cta.arrive" => Op::BarArrive(cx.word(0)?, cx.word(1)?),
        "bar.red.or.pred" => {
            let last = cx.args.len().saturating_sub(1);
            let threads = if last == 3 { Some(cx.word(2)?) } else { None };
            Op::BarOr { result: cx.to(0)?, id: cx.word(1)?, threads, of: cx.pred(last)? }
        }
        _ => return cx.unknown(),
    };
    Ok((Some(Together::Warp), op))
}

fn shuffle(cx: &mut Cx) -> Result<Decoded> {
    let kind = match cx.segment(2) {
        "idx" => Shuffle::Index,
        "bfly" => Shuffle::Butterfly,
        "up" => Shuffle::Up,
        "down" => Shuffle::Down,
        _ => return cx.unknown(),
    };
    let mask: W = cx.word(4)?;
    Ok((Some(Together::Mask(mask)), Op::Shuffle { kind, to: cx.to(0)?, from: cx.word(1)?, by: cx.word(2)?, clamp: cx.word(3)? }))
}

fn vote(cx: &mut Cx) -> Result<Decoded> {
    let together = Some(Together::Mask(cx.word(2)?));
    let of = cx.pred(1)?;
    Ok((
        together,
        match (cx.segment(2), cx.last()) {
            ("ballot", "b32") => Op::Ballot(cx.to(0)?, of),
            ("any", "pred") => Op::Vote(Vote::Any, cx.to(0)?, of),
            ("all", "pred") => Op::Vote(Vote::All, cx.to(0)?, of),
            _ => return cx.unknown(),
        },
    ))
}
