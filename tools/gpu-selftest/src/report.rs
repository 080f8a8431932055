// SPDX-License-Identifier: LGPL-2.1-or-later
//! Results of the checks.

use std::error::Error;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Result of a check: a remark for the report, or the reason of the failure.
pub(crate) type Outcome<T = String> = Result<T, Box<dyn Error>>;

/// Limit for each wait.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// Prints the results and counts the failures.
#[derive(Debug, Default)]
pub(crate) struct Report {
    failed: u32,
}

impl Report {
    /// Prints the result of a check.
    pub(crate) fn line(&mut self, check: &str, outcome: Outcome) {
        match outcome {
            Ok(remark) if remark.is_empty() => println!("ok      {check}"),
            Ok(remark) => println!("ok      {check}: {remark}"),
            Err(e) => {
                self.failed += 1;
                println!("FAILED  {check}: {e}");
            }
        }
    }

    /// Prints the summary and returns the exit status.
    pub(crate) fn finish(&self) -> ExitCode {
        match self.failed {
            0 => println!("all ok"),
            n => println!("{n} FAILED"),
        }
        ExitCode::from(u8::from(self.failed > 0))
    }
}

/// Fails with `otherwise` unless the condition holds.
pub(crate) fn expect(condition: bool, otherwise: impl Into<String>) -> Outcome<()> {
    if condition { Ok(()) } else { Err(otherwise.into().into()) }
}

/// Polls the condition until it holds, and returns the time that took. Fails after [`DEADLINE`].
pub(crate) fn wait_until(
    event: &str,
    mut condition: impl FnMut() -> Outcome<bool>,
) -> Outcome<Duration> {
    let start = Instant::now();
    while !condition()? {
        expect(start.elapsed() < DEADLINE, format!("no {event} within {DEADLINE:?}"))?;
        std::hint::spin_loop();
    }
    Ok(start.elapsed())
}
