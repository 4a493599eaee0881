//! SM clock and power from `nvidia-smi`, as far as it is there.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

/// When a sample was read, SM clock in MHz, board power in watts.
type Sample = (Instant, f64, f64);

/// Samples clock and power in the background, as long as it lives.
pub struct Sampler {
    samples: Arc<Mutex<Vec<Sample>>>,
    running: Option<(Child, JoinHandle<()>)>,
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
        let samples = Arc::new(Mutex::new(Vec::new()));
        let running = child.ok().and_then(|mut child| {
            let (out, samples) = (child.stdout.take()?, samples.clone());
            let reader = std::thread::spawn(move || {
                for line in BufReader::new(out).lines().map_while(Result::ok) {
                    if let Some((clock, power)) = sample(&line) {
                        samples.lock().unwrap_or_else(PoisonError::into_inner).push((Instant::now(), clock, power));
                    }
                }
            });
            Some((child, reader))
        });
        Self { samples, running }
    }

    /// Clock and power of the samples read from `start` to now.
    pub fn since(&self, start: Instant) -> Vec<(f64, f64)> {
        let samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        samples.iter().filter(|s| s.0 >= start).map(|s| (s.1, s.2)).collect()
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        let Some((mut child, reader)) = self.running.take() else { return };
        // Killing a child that has ended by itself fails, and that is fine.
        let _ = child.kill();
        let _ = child.wait();
        let _ = reader.join();
    }
}

/// Median SM clock in MHz and median power in watts, where anything was sampled.
pub fn medians(samples: &[(f64, f64)]) -> (Option<f64>, Option<f64>) {
    (median(samples.iter().map(|s| s.0)), median(samples.iter().map(|s| s.1)))
}

/// "1755, 512.33" as numbers.
fn sample(line: &str) -> Option<(f64, f64)> {
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
        assert_eq!(medians(&[(3.0, 1.0), (1.0, 5.0), (2.0, 2.0)]), (Some(2.0), Some(2.0)));
        assert_eq!(medians(&[]), (None, None));
    }

    #[test]
    fn only_samples_of_the_window_count() {
        let sampler = Sampler { samples: Arc::default(), running: None };
        let early = Instant::now();
        sampler.samples.lock().unwrap().push((early, 1.0, 1.0));
        std::thread::sleep(std::time::Duration::from_millis(2));
        let start = Instant::now();
        sampler.samples.lock().unwrap().push((start, 2.0, 3.0));
        assert_eq!(sampler.since(start), [(2.0, 3.0)]);
        assert_eq!(sampler.since(early).len(), 2);
    }
}
