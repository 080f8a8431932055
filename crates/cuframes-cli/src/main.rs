// SPDX-License-Identifier: LGPL-2.1-or-later
//! The command `cuframes`: lists, watches and diagnoses the publishers of this host.
//!
//! The command connects to each publisher as an observer. An observer counts as no subscriber, so a
//! publisher with a full subscriber list still responds. The binary does not link GStreamer; `doctor`
//! runs `gst-inspect-1.0` instead.

use std::fmt::Display;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use lexopt::prelude::*;

mod doctor;
mod format;
mod inspect;
mod list;
mod metrics;
mod poll;
mod table;
mod top;

const HELP: &str = "\
Shows what is published on this host with cuframes, and in which state it is.

usage: cuframes [--runtime-dir DIR] COMMAND

  list                  list the live keys: format, frame rate, subscribers
  top [OPTIONS]         show keys and subscribers, refreshed every second until Ctrl-C
    --interval SECONDS    refresh interval, 0.1 to 86400 (default 1)
    --count N             exit after N refreshes
  inspect KEY           show all details of the publisher of a key
  doctor                check this system, and say how to fix what is missing
  metrics [OPTIONS]     print all counters in the Prometheus text format
    --listen ADDRESS      serve them over HTTP instead, for example on 127.0.0.1:9469

  --runtime-dir DIR     directory of the sockets; default $CUFRAMES_RUNTIME_DIR, else all of
                        /run/cuframes, $XDG_RUNTIME_DIR/cuframes, /tmp/cuframes-UID
  --help, --version

The command counts as no subscriber, so it leaves max-subscribers of a publisher untouched.
Exit status: 0 if everything works, 1 if a problem was found, 2 for a wrong command line.
";

/// Options that all commands share.
pub(crate) struct Options {
    /// The runtime directory to search instead of the default ones.
    pub(crate) runtime_dir: Option<PathBuf>,
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
            print_error(format_args!("{e}; see cuframes --help"));
            return ExitCode::from(2);
        }
    };
    match run(&options, command) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        // The reader of a pipe has closed it, as `head` does.
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(e) => {
            print_error(e);
            ExitCode::FAILURE
        }
    }
}

/// Runs a command and returns whether everything works.
fn run(options: &Options, command: Command) -> io::Result<bool> {
    match command {
        Command::List => list::run(options),
        Command::Top { interval, count } => top::run(options, interval, count),
        Command::Inspect { key } => inspect::run(options, &key),
        Command::Doctor => doctor::run(options),
        Command::Metrics { listen } => metrics::run(options, listen.as_deref()),
        Command::Help => print(HELP).map(|()| true),
        Command::Version => {
            print(concat!("cuframes ", env!("CARGO_PKG_VERSION"), "\n")).map(|()| true)
        }
    }
}

/// Prints an error to standard error.
pub(crate) fn print_error(error: impl Display) {
    eprintln!("cuframes: {}", sanitize(&error.to_string()));
}

/// Replaces control characters: names and caps are set by other processes and must not send escape
/// sequences to the terminal.
pub(crate) fn sanitize(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// Prints to standard output like `print!`, but returns an error where `print!` panics, such as for a
/// closed pipe.
pub(crate) fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Parses the command line.
fn parse(mut args: lexopt::Parser) -> Result<(Options, Command), lexopt::Error> {
    let mut options = Options { runtime_dir: None };
    let mut command: Option<Command> = None;
    while let Some(arg) = args.next()? {
        match (arg, &mut command) {
            (Long("help") | Short('h'), _) => return Ok((options, Command::Help)),
            (Long("version") | Short('V'), _) => return Ok((options, Command::Version)),
            (Long("runtime-dir"), _) => options.runtime_dir = Some(args.value()?.into()),
            (Long("interval"), Some(Command::Top { interval, .. })) => {
                *interval = args.value()?.parse_with(parse_interval)?;
            }
            (Long("count"), Some(Command::Top { count, .. })) => {
                *count = Some(args.value()?.parse()?);
            }
            (Long("listen"), Some(Command::Metrics { listen })) => {
                *listen = Some(args.value()?.string()?);
            }
            (Value(name), None) => command = Some(parse_command(&name.string()?)?),
            (Value(value), Some(Command::Inspect { key })) if key.is_empty() => {
                *key = value.string()?;
            }
            (arg, _) => return Err(arg.unexpected()),
        }
    }
    match command {
        None => Err("a command is missing: list, top, inspect, doctor or metrics".into()),
        Some(Command::Inspect { key }) if key.is_empty() => {
            Err("inspect needs a key; cuframes list shows the live keys".into())
        }
        Some(command) => Ok((options, command)),
    }
}

/// Returns the command of this name with its default options.
fn parse_command(name: &str) -> Result<Command, String> {
    Ok(match name {
        "list" => Command::List,
        "top" => Command::Top { interval: Duration::from_secs(1), count: None },
        "inspect" => Command::Inspect { key: String::new() },
        "doctor" => Command::Doctor,
        "metrics" => Command::Metrics { listen: None },
        "help" => Command::Help,
        other => return Err(format!("unknown command '{other}'")),
    })
}

/// Parses a refresh interval in seconds.
fn parse_interval(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number of seconds".to_owned())?;
    Duration::try_from_secs_f64(seconds)
        .ok()
        .filter(|d| *d >= Duration::from_millis(100) && *d <= Duration::from_secs(86_400))
        .ok_or_else(|| "the interval must be 0.1 to 86400 seconds".to_owned())
}
