//! A progress bar that shows itself after two seconds, on a terminal only.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

/// How long a command may run before the bar appears.
const QUIET: Duration = Duration::from_secs(2);

/// The bar; removed from the terminal when dropped.
pub struct Progress {
    bar: ProgressBar,
    reveal: Option<(Sender<()>, JoinHandle<()>)>,
}

impl Progress {
    /// A hidden bar of `steps` steps.
    pub fn new(steps: u64) -> Self {
        let bar = ProgressBar::with_draw_target(Some(steps), ProgressDrawTarget::hidden());
        if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg} ({elapsed})") {
            bar.set_style(style);
        }
        let (sender, receiver) = channel::<()>();
        let shown = bar.clone();
        let thread = std::thread::spawn(move || {
            if receiver.recv_timeout(QUIET).is_err_and(|e| e == std::sync::mpsc::RecvTimeoutError::Timeout) {
                // Draws nothing where stderr is not a terminal.
                shown.set_draw_target(ProgressDrawTarget::stderr());
                shown.enable_steady_tick(Duration::from_millis(200));
            }
        });
        Self { bar, reveal: Some((sender, thread)) }
    }

    /// Names the work under way.
    pub fn message(&self, text: impl Into<std::borrow::Cow<'static, str>>) {
        self.bar.set_message(text);
    }

    /// One more step is done.
    pub fn step(&self) {
        self.bar.inc(1);
    }

    /// Adds steps that were not known at the start.
    pub fn expect(&self, steps: u64) {
        self.bar.inc_length(steps);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some((sender, thread)) = self.reveal.take() {
            drop(sender);
            // The thread ends at once: its channel is closed. It cannot panic with anything worth reporting.
            let _ = thread.join();
        }
        self.bar.finish_and_clear();
    }
}
