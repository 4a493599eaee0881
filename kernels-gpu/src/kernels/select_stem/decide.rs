//! The consumer warpgroups: scores, then lists.

use crate::abi::SelectParams;
use crate::config::select::{CONSUMER_BARRIER, CONSUMER_THREADS, CONSUMER_WARPS, SPAN, STEPS, WIDE_TURNS};
use crate::layout::select::Row;
use crate::layout::wide::WideSpan;
use crate::pipeline::kept::{self, Place};
use crate::pipeline::lists::{scores_at, write_lists};
use crate::pipeline::scores::Consumer;
use crate::pipeline::shared::Shared;
use crate::pipeline::stages::Turn;
use crate::ptx::{barrier, cluster, fence, global, mbarrier, special, warp};
use crate::tile::strip::{Span, Strip, wants_scores};
use crate::tile::topk::Scores;

/// A consumer's way through the strips.
///
/// # Safety
/// All consumer threads call it, converged in warps; theirs are the first of the block. `WIDE`: of both blocks of a cluster.
#[inline(always)]
pub(super) unsafe fn consume<const WIDE: bool>(p: &SelectParams, consumer: Consumer) {
    // SAFETY: forwarded; all consumers take the same way, which depends on the strip alone. A plan is waited for before it is read, and
    // given back when its strip is done. Where a warp is, it keeps in shared memory: registers are short around the products.
    unsafe {
        let (mut strip, mut spans, mut ring) = (0, 0, 0);
        loop {
            Place { strip, first: 0, spans, ring }.keep();
            let shared = Shared::again();
            shared.plans.wait_full(Turn::at(strip));
            if kept::plan().size()[0] == 0 {
                return;
            }
            if kept::plan().scored() {
                while if WIDE { score_span_wide(p, consumer) } else { score_span(p, consumer) } {
                    release_scores::<WIDE>(consumer);
                }
            }
            write_lists::<WIDE>(p);
            if kept::plan().scored() {
                release_scores::<WIDE>(consumer);
            }
            Place { strip, spans, ring, .. } = Place::kept();
            mbarrier::arrive(Shared::again().plans.empty(Turn::at(strip)));
            strip += 1;
        }
    }
}

/// Scores the span that the consumers are at, and goes on to the next, if there is one: then the scores are in device memory.
///
/// # Safety
/// All consumer threads call it, converged in warps, which keep a place in a strip whose scores somebody asks for.
#[inline(always)]
unsafe fn score_span(p: &SelectParams, consumer: Consumer) -> bool {
    let shared = Shared::again();
    // SAFETY: forwarded.
    unsafe {
        let strip = kept::plan().strip();
        let span = strip.span(Place::kept().first);
        consumer.score(p, shared, span, || {
            barrier::sync::<CONSUMER_BARRIER, CONSUMER_THREADS>();
            mbarrier::wait(shared.terms(), Place::kept().spans % 2);
        });
        // Every thread for itself: `compute-sanitizer --tool racecheck` does not follow what one says for others.
        mbarrier::arrive(shared.terms_read());
        barrier::sync::<CONSUMER_BARRIER, CONSUMER_THREADS>();
        after_span::<false>(p, 0)
    }
}

/// As [`score_span`], where the blocks of a cluster share the products.
///
/// # Safety
/// As [`score_span`], for both blocks, which are at the same span.
#[inline(always)]
unsafe fn score_span_wide(p: &SelectParams, consumer: Consumer) -> bool {
    let shared = Shared::again();
    // SAFETY: forwarded. Both barriers complete once a span, not before this warp has arrived for it.
    unsafe {
        let strip = kept::plan().strip();
        let at = Place::kept();
        let span = WideSpan::of(warp::shfl_idx_u32(strip.span(at.first).count as u32, 0), warp::shfl_idx_u32(cluster::rank(), 0));
        consumer.score_wide(p, shared, span, Turn::at(at.ring), || {
            let (shared, parity) = (Shared::again(), Place::kept().spans % 2);
            mbarrier::wait_cluster(shared.made(), parity);
            mbarrier::wait(shared.terms(), parity);
        });
        let shared = Shared::again();
        mbarrier::arrive(shared.terms_read());
        let lane = special::tid_x_again() % 32;
        warp::sync();
        cluster::arrive_release_if(shared.stored(), lane, (lane < 2) as u32);
        mbarrier::wait_cluster(shared.stored(), Place::kept().spans % 2);
        after_span::<true>(p, span.warpgroups() * STEPS)
    }
}

/// Copies the scores of the span that the consumers are at out, if they go to device memory, and goes on to the next, which begins `stages`
/// further on in the ring, if there is one.
///
/// # Safety
/// As [`score_span`]; the scores are complete.
#[inline(always)]
unsafe fn after_span<const WIDE: bool>(p: &SelectParams, stages: u32) -> bool {
    // SAFETY: forwarded.
    unsafe {
        // Once: a look-up hangs on the one before, and registers are no longer short.
        let at = Place::kept();
        let strip = Shared::again().plan(at.strip).strip();
        copy_out::<WIDE>(p, &strip, strip.span(at.first));
        let next = Place { first: at.first + SPAN as i32, spans: at.spans + 1, ring: (at.ring + stages) % (2 * WIDE_TURNS), ..at };
        next.keep();
        next.first < strip.keys
    }
}

/// Tells whoever copies key sums where the scores lie that the warp is done with them: every block of the cluster, or the own one.
#[inline(always)]
unsafe fn release_scores<const WIDE: bool>(consumer: Consumer) {
    let lane = special::tid_x_again() % 32;
    // SAFETY: forwarded from `consume`; the fence orders the warp's accesses, which are to its own block's memory, before the copies.
    unsafe {
        fence::proxy_async_shared();
        warp::sync();
        if WIDE {
            mbarrier::arrive_if(Shared::again().done(), (lane == 0) as u32);
        } else {
            cluster::arrive_if(Shared::again().done(), lane, (lane < consumer.blocks) as u32);
        }
    }
}

/// Copies what the strip's rows see of a span to device memory, if the caller wants the scores or more spans follow.
#[inline(always)]
unsafe fn copy_out<const WIDE: bool>(p: &SelectParams, strip: &Strip, span: Span) {
    if !(wants_scores(p) | (strip.keys > SPAN as i32)) {
        return;
    }
    let thread = special::tid_x_again();
    let (mut r, lane) = (thread / 32, thread % 32);
    // SAFETY: rows of the strip; the host has checked the extents of `scores`.
    unsafe {
        while r < strip.rows as u32 {
            let (Row { count, .. }, _) = kept::plan().row(p, r);
            let to = scores_at(p, strip, r) + span.first as u32 as u64 * 4;
            let (from, paired) = (Shared::again().scores(r), Shared::again().paired::<WIDE>(r));
            let mut base = 0;
            while base < span.count {
                let j = base + lane as i32;
                // Up to 31 words past the span are read, which lie in shared memory, too.
                let score = if WIDE | (p.round_bf16 != 0) { paired.bits(j as u32, true) } else { from.bits(j as u32, true) };
                global::st_u32_if(to + j as u32 as u64 * 4, score, ((j < span.count) & (span.first + j < count)) as u32);
                base += 32;
            }
            r += CONSUMER_WARPS;
        }
    }
}
