//! `cuframes`: what is published on this host, and how it does.
//!
//! It asks publishers over their sockets, as an observer: it takes no subscriber's place, and needs no
//! GStreamer, but for `doctor`.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use lexopt::prelude::*;

mod doctor;
mod inspect;
mod list;
mod look;
mod metrics;
mod table;
mod top;

const HELP: &str = "\
What is published on this host with cuframes, and how it does.

usage: cuframes [--runtime-dir DIR] COMMAND

  list                  the live keys: format, frames a second, subscribers
  top [OPTIONS]         the same and each subscriber, again every second, until Ctrl-C
    --interval SECONDS    how often (1)
    --count N             end after so many times
  inspect KEY           all that the publisher of a key tells
  doctor                looks for what is missing on this system, and says what to do
  metrics [OPTIONS]     all counters in Prometheus' text format
    --listen ADDRESS      serve them by HTTP, such as 127.0.0.1:9469; without, print them once

  --runtime-dir DIR     where the sockets are; else $CUFRAMES_RUNTIME_DIR, else each of
                        /run/cuframes, $XDG_RUNTIME_DIR/cuframes, /tmp/cuframes-UID
  --help, --version

A publisher is asked over its socket and gives no subscriber's place away for it.
The exit status is 0 if all is well, 1 if something is not, 2 for a wrong command.
";

/// What all commands are told.
pub struct Options {
    pub runtime_dir: Option<PathBuf>,
}

enum Command {
    List,
    Top { interval: Duration, count: Option<u64> },
    Inspect { key: String },
    Doctor,
    Metrics { listen: Option<String> },
    Help,
    Version,
}

fn main() -> ExitCode {
    let (options, command) = match parse(lexopt::Parser::from_env()) {
        Ok(parsed) => parsed,
        Err(e) => {
            complain(format_args!("{e}; see cuframes --help"));
            return ExitCode::from(2);
        }
    };
    let done = match command {
        Command::List => list::run(&options),
        Command::Top { interval, count } => top::run(&options, interval, count),
        Command::Inspect { key } => inspect::run(&options, &key),
        Command::Doctor => doctor::run(&options),
        Command::Metrics { listen } => metrics::run(&options, listen.as_deref()),
        Command::Help => print(HELP).map(|()| true),
        Command::Version => {
            print(concat!("cuframes ", env!("CARGO_PKG_VERSION"), "\n")).map(|()| true)
        }
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        // Whoever read our output has seen enough of it.
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(e) => {
            complain(e);
            ExitCode::FAILURE
        }
    }
}

/// Says what went wrong, on standard error.
pub fn complain(error: impl std::fmt::Display) {
    eprintln!("cuframes: {}", plain(&error.to_string()));
}

/// Texts come from other processes: none may steer the terminal.
pub fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// As `print!`, but a reader that is gone is an error and no panic.
pub fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

fn parse(mut args: lexopt::Parser) -> Result<(Options, Command), lexopt::Error> {
    let mut options = Options { runtime_dir: None };
    let mut command: Option<Command> = None;
    while let Some(arg) = args.next()? {
        match (arg, &mut command) {
            (Long("help") | Short('h'), _) => return Ok((options, Command::Help)),
            (Long("version") | Short('V'), _) => return Ok((options, Command::Version)),
            (Long("runtime-dir"), _) => options.runtime_dir = Some(args.value()?.into()),
            (Long("interval"), Some(Command::Top { interval, .. })) => {
                *interval = args.value()?.parse_with(seconds)?;
            }
            (Long("count"), Some(Command::Top { count, .. })) => {
                *count = Some(args.value()?.parse()?);
            }
            (Long("listen"), Some(Command::Metrics { listen })) => {
                *listen = Some(args.value()?.string()?);
            }
            (Value(word), None) => {
                command = Some(match word.string()?.as_str() {
                    "list" => Command::List,
                    "top" => Command::Top { interval: Duration::from_secs(1), count: None },
                    "inspect" => Command::Inspect { key: String::new() },
                    "doctor" => Command::Doctor,
                    "metrics" => Command::Metrics { listen: None },
                    "help" => Command::Help,
                    other => return Err(format!("there is no command '{other}'").into()),
                });
            }
            (Value(word), Some(Command::Inspect { key })) if key.is_empty() => {
                *key = word.string()?;
            }
            (arg, _) => return Err(arg.unexpected()),
        }
    }
    match command {
        None => Err("it takes a command: list, top, inspect, doctor or metrics".into()),
        Some(Command::Inspect { key }) if key.is_empty() => {
            Err("inspect takes a key; cuframes list shows those that there are".into())
        }
        Some(command) => Ok((options, command)),
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "it is no number of seconds".to_owned())?;
    Duration::try_from_secs_f64(seconds)
        .ok()
        .filter(|d| *d >= Duration::from_millis(100) && *d <= Duration::from_secs(86_400))
        .ok_or_else(|| "0.1 to 86400 seconds are possible".to_owned())
}
