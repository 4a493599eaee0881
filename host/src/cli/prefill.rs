//! `stem prefill`: attention of one layer on tensors from a file.

use super::args::{PrefillArgs, SelectorArg};
use super::commas::commas;
use super::machine::Machine;
use super::progress::Progress;
use super::work::{Shape, tflops};
use super::{accuracy, files, heatmap, input::Input, table};
use crate::backend::{Backend, PrefillOptions, PrefillOutput, StageTime};
use crate::config::{Selection, StemConfig};
use crate::error::{Error, Result};
use crate::record::{self, Record};
use safetensors::{Dtype, tensor::TensorView};

/// Rows checked against f64 attention: enough for two digits of the error, a second or two of CPU time at 128 K.
const SAMPLED_ROWS: usize = 128;
/// Seed of the sample, so that runs can be compared.
const SAMPLE_SEED: u64 = 2;

/// Runs the command.
pub fn run(args: &PrefillArgs) -> anyhow::Result<()> {
    // Everything that can be wrong with the arguments, before anything is read or launched.
    let targets = [("output", args.output.as_deref()), ("report", args.report.as_deref()), ("mask", args.mask.as_deref())];
    files::check_targets(&targets, Some(&args.input))?;
    crate::kv::layout::check_page_size(args.page_size)?;
    let mut config = StemConfig::preset(args.preset.into());
    config.alpha = args.alpha.unwrap_or(config.alpha);
    config.selector = args.selector.into();
    config.validate()?;

    let progress = Progress::new(4);
    progress.message("reading");
    let input = Input::read(&args.input)?;
    progress.step();
    let (selection, preset) = match (&input.lists, args.dense) {
        (Some(_), true) => return Err(Error::value("block_mask", "no block_mask in the file together with --dense", "one").into()),
        (Some(lists), false) => (Selection::Lists(lists), "block_mask"),
        (None, true) => (Selection::Dense, "dense"),
        (None, false) => (Selection::Stem(&config), args.preset.name()),
    };

    let selector = matches!(selection, Selection::Stem(_)).then_some(args.selector);

    let backend = Backend::open(args.backend.into())?;
    progress.message(format!("attention ({})", backend.name()));
    let options = PrefillOptions { page_size: args.page_size, repeat: args.repeat as usize, ..PrefillOptions::default() };
    let output = backend.prefill(&input.inputs(), selection, &options)?;
    progress.step();

    progress.message("checking rows in f64");
    let rows = accuracy::sample(&input.shape, SAMPLED_ROWS, SAMPLE_SEED);
    progress.expect(rows.len() as u64);
    let errors = accuracy::measure(&input.inputs(), &input.shape, &output.lists, &output.out, &rows, || progress.step());
    progress.step();

    progress.message("writing");
    let run = Run { args, input: &input, machine: Machine::of(&backend), preset, selector, output: &output, errors };
    if let Some(path) = &args.output {
        files::write_atomic("output", path, &serialise(&input.shape, &output)?)?;
    }
    if let Some(path) = &args.mask {
        let (_, share) = input.shape.kept(&output.lists);
        let (tokens, blocks) = (commas(input.shape.tokens), run.blocks());
        let title = format!("Key blocks attended to, {tokens} tokens, {blocks}: {:.1} % kept", 100.0 * share);
        files::write_atomic("mask", path, heatmap::draw(&input.shape, &output.lists, &title).as_bytes())?;
    }
    if let Some(path) = &args.report {
        files::append_lines("report", path, &run.records().iter().map(Record::to_line).collect::<String>())?;
    }
    progress.step();
    drop(progress);
    say!("{}", run.table());
    Ok(())
}

/// Bytes of the output file.
fn serialise(g: &Shape, output: &PrefillOutput) -> Result<Vec<u8>> {
    let failed = |e: safetensors::SafeTensorError| Error::value("output", "tensors that fit a safetensors file", e);
    let (qb, kb) = (g.qb(), g.kb());
    let mask = output.lists.to_mask(kb)?;
    let little: Vec<u8>;
    // BF16 and I32 are little-endian in the file.
    let (out, counts): (&[u8], &[u8]) = if cfg!(target_endian = "little") {
        (bytemuck::cast_slice(&output.out), bytemuck::cast_slice(&output.lists.counts))
    } else {
        let split = output.out.len() * 2;
        little = output.out.iter().flat_map(|x| x.to_le_bytes()).chain(output.lists.counts.iter().flat_map(|x| x.to_le_bytes())).collect();
        little.split_at(split)
    };
    let view = |dtype, shape: Vec<usize>, data| TensorView::new(dtype, shape, data).map_err(failed);
    let tensors = [
        ("out", view(Dtype::BF16, vec![g.tokens, g.hq, stem_attn_kernels::config::HEAD_DIM], out)?),
        ("block_mask", view(Dtype::U8, vec![g.hq, qb, kb], &mask)?),
        ("block_counts", view(Dtype::I32, vec![g.hq, qb], counts)?),
    ];
    safetensors::serialize(tensors, None).map_err(failed)
}

/// A finished run, for the table and the records.
struct Run<'a> {
    args: &'a PrefillArgs,
    input: &'a Input,
    machine: Machine,
    preset: &'a str,
    /// What scored the blocks, where they were selected here.
    selector: Option<SelectorArg>,
    output: &'a PrefillOutput,
    errors: accuracy::Errors,
}

impl Run<'_> {
    /// Where the blocks come from, in words.
    fn blocks(&self) -> String {
        self.selector.map_or_else(|| self.preset.to_owned(), |selector| selector.with(self.preset))
    }

    /// The stages that ran, then their sum.
    fn stages(&self) -> Vec<(&'static str, StageTime)> {
        let times = &self.output.times;
        let mut stages = vec![("summarize_kv", times.summarize_kv), ("select", times.select), ("attend", times.attend)];
        stages.retain(|(_, t)| t.ms > 0.0);
        let sum = |f: fn(&StageTime) -> f64| stages.iter().map(|(_, t)| f(t)).sum();
        stages.push(("prefill", StageTime { ms: sum(|t| t.ms), p10: sum(|t| t.p10), p90: sum(|t| t.p90) }));
        stages
    }

    fn table(&self) -> String {
        let (g, lists) = (&self.input.shape, &self.output.lists);
        let (kept, share) = g.kept(lists);
        let (selected, visible) = (g.selected_pairs(lists), g.visible_pairs());
        let facts = table::facts(&[
            ("backend", self.machine.describe()),
            ("tokens", format!("{} new, {} before them", commas(g.tokens), commas(g.history()))),
            ("heads", format!("{} query, {} KV, dimension 128; pages of {} tokens", g.hq, g.hkv, self.args.page_size)),
            ("input", self.input.source.clone()),
            (
                "blocks",
                format!(
                    "{}: {} of {} causal blocks kept, {:.1} %",
                    self.blocks(),
                    commas(kept),
                    commas(g.causal_blocks() * g.hq),
                    100.0 * share
                ),
            ),
            (
                "error",
                format!(
                    "{:.4} relative to dense f64 attention, {:.4} on the selected blocks ({} rows)",
                    self.errors.dense, self.errors.selected, self.errors.rows
                ),
            ),
        ]);
        let rows: Vec<_> = self
            .stages()
            .into_iter()
            .map(|(name, t)| {
                let rate = |pairs| if works(name) { table::rate(tflops(pairs, t.ms)) } else { "-".into() };
                vec![
                    name.into(),
                    table::milliseconds(t.ms),
                    table::milliseconds(t.p10),
                    table::milliseconds(t.p90),
                    rate(selected),
                    rate(visible),
                ]
            })
            .collect();
        let stages = table::grid(&["stage", "ms (median)", "p10", "p90", "TFLOP/s selected", "TFLOP/s dense-equivalent"], &rows);
        format!("{facts}\n{stages}\nTFLOP/s count visible (query, key) pairs, 4 x 128 each: those in kept blocks, and all of them.")
    }

    fn records(&self) -> Vec<Record> {
        let (g, lists) = (&self.input.shape, &self.output.lists);
        let (selected, visible) = (g.selected_pairs(lists), g.visible_pairs());
        let (command, commit, date) = (record::command(), record::commit(), record::now());
        let of = |(name, t): (&'static str, StageTime)| Record {
            bench: name.into(),
            backend: self.machine.backend.into(),
            gpu: self.machine.gpu.clone(),
            driver: self.machine.driver.clone(),
            hq: g.hq,
            hkv: g.hkv,
            d: stem_attn_kernels::config::HEAD_DIM,
            seq: g.tokens,
            history: g.history(),
            page: self.args.page_size,
            skip: matches!(name, "select" | "attend" | "prefill").then(|| 1.0 - g.kept(lists).1),
            softmax: works(name).then(|| "exact".into()),
            preset: matches!(name, "select" | "attend" | "prefill").then(|| self.preset.into()),
            selector: self
                .selector
                .filter(|_| matches!(name, "select" | "prefill" | "summarize_kv"))
                .map(|selector| selector.name().into()),
            ms: t.ms,
            p10: t.p10,
            p90: t.p90,
            repeat: self.args.repeat as usize,
            tflops_selected: works(name).then(|| tflops(selected, t.ms)),
            tflops_dense_equiv: works(name).then(|| tflops(visible, t.ms)),
            command: command.clone(),
            commit: commit.clone(),
            date: date.clone(),
            ..Record::default()
        };
        self.stages().into_iter().map(of).collect()
    }
}

/// Whether a stage does the attention that FLOPs are counted of.
fn works(stage: &str) -> bool {
    matches!(stage, "attend" | "prefill")
}
