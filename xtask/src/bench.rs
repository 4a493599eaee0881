//! `cargo xtask bench --compare A B`: what became faster or slower between two commits, from their records.

use crate::plot::RECORDS;
use crate::plot::data::{Records, Speed};
use crate::sh;
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};

/// Options.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Two commits whose records are compared, the earlier first; or two files of records
    #[arg(long, num_args = 2, value_names = ["A", "B"], required = true)]
    pub compare: Vec<String>,
    /// Slower by more than this share is a regression
    #[arg(long, default_value_t = 0.03, value_name = "SHARE")]
    pub threshold: f64,
    /// Folder of `*.jsonl` files with the commits' records
    #[arg(long, default_value = RECORDS, value_name = "DIR")]
    pub records: PathBuf,
}

/// What one pair of records says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Same,
    Faster,
    Slower,
}

/// Two records of one thing.
struct Pair<'a> {
    before: &'a Speed,
    after: &'a Speed,
}

/// Runs the command.
///
/// # Errors
/// When something is slower by more than the threshold, or there is nothing to compare.
pub fn run(args: &Args) -> Result<()> {
    if !(args.threshold.is_finite() && args.threshold >= 0.0) {
        bail!("--threshold wants a share of at least 0");
    }
    let [a, b] = args.compare.as_slice() else { bail!("--compare wants two commits or files") };
    let folder = sh::root().join(&args.records);
    let (before, after) = (records(a, &folder)?, records(b, &folder)?);
    let pairs = pairs(&before, &after);
    if pairs.is_empty() {
        bail!("{a} ({} records) and {b} ({}) have none of one stage, shape and GPU in common", before.len(), after.len());
    }
    let mut slower = 0;
    say!(
        "{:<52}{:>11}{:>11}{:>9}{:>10}{:>10}{:>9}",
        "stage, tokens, blocks, skipped",
        "ms A",
        "ms B",
        "B / A",
        "cycles A",
        "cycles B",
        "B / A"
    );
    for pair in &pairs {
        let verdict = pair.verdict(args.threshold);
        slower += usize::from(verdict == Verdict::Slower);
        say!("{}", pair.row(verdict));
    }
    say!("A: {a}, B: {b}; judged by cycles a tile where both have them, else by the median time beyond the spread of both.");
    if slower > 0 {
        bail!("{slower} of {} slower by more than {:.1} %", pairs.len(), 100.0 * args.threshold);
    }
    Ok(())
}

/// The records of ours of a file, or of a commit in the folder's files.
fn records(which: &str, folder: &Path) -> Result<Vec<Speed>> {
    let file = Path::new(which);
    let ours = |r: &Speed| r.peer.is_none() && r.source.is_none() && r.ms.is_some_and(|ms| ms > 0.0);
    if file.is_file() {
        let mut records = Records::default();
        records.add(&std::fs::read_to_string(file)?).with_context(|| file.display().to_string())?;
        return Ok(records.speed.into_iter().filter(ours).collect());
    }
    // `HEAD~1`, a tag or a branch names a commit as well as its number does.
    let commit = sh::capture(sh::command("git").args(["rev-parse", "--verify", "--quiet", &format!("{which}^{{commit}}")]))
        .map_or_else(|_| which.to_owned(), |hash| hash.trim().to_owned());
    let made_by = |r: &Speed| {
        let recorded = r.commit.as_deref().unwrap_or_default();
        recorded.len() >= 7 && (commit.starts_with(recorded) || recorded.starts_with(&commit))
    };
    let found: Vec<Speed> = Records::read(folder)?.speed.into_iter().filter(ours).filter(made_by).collect();
    if found.is_empty() {
        bail!("no record of commit {which} in {} (records of changed files, `-dirty`, belong to no commit)", folder.display());
    }
    Ok(found)
}

/// Records of both sides that are of one stage, shape and GPU; of several on one side the newest.
fn pairs<'a>(before: &'a [Speed], after: &'a [Speed]) -> Vec<Pair<'a>> {
    let newest = |side: &'a [Speed], like: &Speed| side.iter().filter(|r| key(r) == key(like)).max_by(|a, b| a.date.cmp(&b.date));
    let mut seen = Vec::new();
    let mut pairs = Vec::new();
    for r in before {
        if seen.contains(&key(r)) {
            continue;
        }
        seen.push(key(r));
        if let (Some(before), Some(after)) = (newest(before, r), newest(after, r)) {
            pairs.push(Pair { before, after });
        }
    }
    pairs
}

/// What must be equal for times to be comparable.
fn key(r: &Speed) -> ([&str; 5], [u64; 6], Option<i64>) {
    let gpu = r.gpu.as_deref().unwrap_or(&r.backend);
    let (preset, l2) = (r.preset.as_deref().unwrap_or_default(), r.l2.as_deref().unwrap_or_default());
    ([&r.bench, gpu, preset, r.selector(), l2], [r.seq, r.chunk.unwrap_or(0), r.history, r.hq, r.hkv, r.page], r.given_skip())
}

impl Pair<'_> {
    fn times(&self) -> (f64, f64) {
        (self.before.ms.unwrap_or(f64::NAN), self.after.ms.unwrap_or(f64::NAN))
    }

    fn cycles(&self) -> Option<(f64, f64)> {
        self.before.cycles_per_tile.zip(self.after.cycles_per_tile)
    }

    fn verdict(&self, threshold: f64) -> Verdict {
        let change = |(a, b): (f64, f64)| b / a - 1.0;
        let (share, beyond_spread) = match self.cycles() {
            Some(cycles) => (change(cycles), true),
            None => {
                let apart = |slow: &Speed, quick: &Speed| slow.p10.zip(quick.p90).is_none_or(|(p10, p90)| p10 > p90);
                let share = change(self.times());
                (share, if share > 0.0 { apart(self.after, self.before) } else { apart(self.before, self.after) })
            }
        };
        match share {
            s if s > threshold && beyond_spread => Verdict::Slower,
            s if s < -threshold && beyond_spread => Verdict::Faster,
            _ => Verdict::Same,
        }
    }

    fn row(&self, verdict: Verdict) -> String {
        let r = self.after;
        let skip = r.skip_percent().map_or_else(String::new, |skip| format!(", {skip} %"));
        let history = if r.history > 0 { format!(" on {}", r.history) } else { String::new() };
        let chunk = r.chunk.map_or_else(String::new, |chunk| format!("{chunk} of "));
        let name = format!("{}, {chunk}{}{history}, {}{skip}", r.bench, r.seq, r.preset.as_deref().unwrap_or("-"));
        let (a, b) = self.times();
        let cycles =
            self.cycles().map_or_else(|| format!("{:>10}{:>10}{:>9}", "-", "-", "-"), |(a, b)| format!("{a:>10.0}{b:>10.0}{:>9.3}", b / a));
        let mark = match verdict {
            Verdict::Same => "",
            Verdict::Faster => "  faster",
            Verdict::Slower => "  SLOWER",
        };
        format!("{name:<52}{a:>11.4}{b:>11.4}{:>9.3}{cycles}{mark}", b / a)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn speed(ms: f64, cycles: Option<f64>) -> Speed {
        Speed {
            bench: "attend".into(),
            backend: "cuda".into(),
            seq: 8192,
            skip: Some(0.5),
            ms: Some(ms),
            p10: Some(ms * 0.99),
            p90: Some(ms * 1.01),
            cycles_per_tile: cycles,
            ..Speed::default()
        }
    }

    #[test]
    fn cycles_decide_where_there_are_some_and_else_times_beyond_their_spread() {
        let verdict = |a: &Speed, b: &Speed| Pair { before: a, after: b }.verdict(0.03);
        // Slower by a lower clock alone.
        assert_eq!(verdict(&speed(1.0, Some(2000.0)), &speed(1.2, Some(2010.0))), Verdict::Same);
        assert_eq!(verdict(&speed(1.0, Some(2000.0)), &speed(1.0, Some(2100.0))), Verdict::Slower);
        assert_eq!(verdict(&speed(1.0, None), &speed(1.05, None)), Verdict::Slower);
        assert_eq!(verdict(&speed(1.0, None), &speed(0.9, None)), Verdict::Faster);
        let noisy = Speed { p90: Some(1.2), ..speed(1.0, None) };
        assert_eq!(verdict(&noisy, &speed(1.05, None)), Verdict::Same);
    }

    #[test]
    fn only_one_thing_is_compared_with_itself_and_the_newest_counts() {
        let dated = |ms, date: &str| Speed { date: Some(date.into()), ..speed(ms, None) };
        let other = Speed { l2: Some("flushed".into()), ..speed(1.0, None) };
        let (before, after) = ([dated(1.0, "1"), dated(2.0, "2"), other], [dated(3.0, "1"), Speed { page: 16, ..speed(1.0, None) }]);
        let pairs = pairs(&before, &after);
        assert_eq!(pairs.iter().map(Pair::times).collect::<Vec<_>>(), [(2.0, 3.0)]);
        assert!(pairs.first().is_some_and(|p| p.row(Verdict::Slower).contains("SLOWER")));
    }
}
