//! GPU name, driver, SM clock and power from `nvidia-smi`, as far as it is there.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;

/// SM clock in MHz and board power in watts.
type Sample = (f64, f64);

/// Samples clock and power in the background until [`Sampler::stop`].
pub struct Sampler {
    running: Option<(Child, JoinHandle<Vec<Sample>>)>,
}

impl Sampler {
    /// Starts sampling the GPU at a PCI address every 50 ms; does nothing where there is no `nvidia-smi`. (Its numbers of
    /// devices are not CUDA's.)
    pub fn start(pci_address: &str) -> Self {
        let child = Command::new("nvidia-smi")
            .arg(format!("--id={pci_address}"))
            .args(["--query-gpu=clocks.sm,power.draw", "--format=csv,noheader,nounits", "--loop-ms=50"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn();
        let running = child.ok().and_then(|mut child| {
            let out = child.stdout.take()?;
            let reader = std::thread::spawn(move || BufReader::new(out).lines().map_while(Result::ok).filter_map(|l| sample(&l)).collect());
            Some((child, reader))
        });
        Self { running }
    }

    /// Ends sampling: median SM clock in MHz and median power in watts, where anything was sampled.
    pub fn stop(mut self) -> (Option<f64>, Option<f64>) {
        let samples = self.end();
        (median(samples.iter().map(|s| s.0)), median(samples.iter().map(|s| s.1)))
    }

    fn end(&mut self) -> Vec<Sample> {
        let Some((mut child, reader)) = self.running.take() else { return Vec::new() };
        // Killing a child that has ended by itself fails, and that is fine.
        let _ = child.kill();
        let _ = child.wait();
        reader.join().unwrap_or_default()
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        self.end();
    }
}

/// "1755, 512.33" as numbers.
fn sample(line: &str) -> Option<Sample> {
    let (clock, power) = line.split_once(',')?;
    Some((clock.trim().parse().ok()?, power.trim().parse().ok()?))
}

fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.filter(|v| v.is_finite()).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_and_medians() {
        assert_eq!(sample("1755, 512.33"), Some((1755.0, 512.33)));
        assert_eq!(sample("[N/A], 1"), None);
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), Some(2.0));
        assert_eq!(median(std::iter::empty()), None);
    }
}
