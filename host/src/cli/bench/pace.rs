//! Turns with another program, which speaks through standard input and output.

use crate::error::{Error, Result};
use std::io::BufRead;

/// Waits for the other program, where there is one.
pub struct Pace(pub bool);

impl Pace {
    /// Everything of a length is prepared and checked.
    pub fn ready(&self) {
        if self.0 {
            say!("ready");
            flush();
        }
    }

    /// Waits until it is this program's turn.
    pub fn wait(&self) -> Result<()> {
        if !self.0 {
            return Ok(());
        }
        let mut line = String::new();
        match std::io::stdin().lock().read_line(&mut line) {
            Ok(n) if n > 0 => Ok(()),
            Ok(_) => Err(Error::value("paced", "a line on standard input before every turn", "its end")),
            Err(e) => Err(Error::value("paced", "a line on standard input before every turn", e)),
        }
    }

    /// This turn is over.
    pub fn done(&self) {
        if self.0 {
            say!("done");
            flush();
        }
    }
}

fn flush() {
    use std::io::Write;
    // Nobody is left to tell.
    let _ = std::io::stdout().flush();
}
