//! The `pelton` command.
//!
//! This file reads the command line and turns the end of a command into an exit code: 0 it worked,
//! 1 it did not and one line on standard error says why, 2 the command line made no sense. What the
//! commands do stands in `demo.rs`, `doctor.rs`, `feed.rs`, `load.rs`, `pull.rs`, `repair.rs`, `scan.rs`, `serve.rs`, `ops/` and `region/`.
#![forbid(unsafe_code)]

mod cache;
mod demo;
mod doctor;
mod failure;
mod feed;
mod file_kind;
mod input;
mod load;
mod ops;
mod output;
mod peer;
mod progress;
mod pull;
mod region;
mod repair;
mod scan;
mod serve;
mod spool;
mod stdout;
mod tls;
mod usage;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use failure::Failure;
use pelton::Operation;

/// Keeps datasets where every core can scan them, and works with their files.
#[derive(Parser)]
#[command(name = "pelton", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Loads, scans, restarts and verifies a made-up dataset, beside plain memory and disk
    Demo(demo::Demo),
    /// Tells what this machine and the spindles' disks allow, and what to change
    Doctor(doctor::Doctor),
    /// Loads blobs into slices of the cache
    Load(load::Load),
    /// Takes a slice from another worker into the cache, as it is there
    Pull(pull::Pull),
    /// Makes a damaged slice of the cache whole, with another worker's blocks for the damaged ones
    Repair(repair::Repair),
    /// Gives files as slices to whoever loads from here: a source for trying things
    Feed(feed::Feed),
    /// Scans slices of the cache where they lie
    Scan(scan::Scan),
    /// Lists what the cache has
    Ls(ops::ls::Ls),
    /// Lets memory go, and what the page cache holds of the files; the files stay
    Evict(ops::change::Evict),
    /// Removes slices from memory and disks
    Flush(ops::change::Remove),
    /// Removes slices, and forgets all that is known of them
    Erase(ops::change::Remove),
    /// Keeps slices from being evicted, flushed and erased, also by later commands
    Pin(ops::change::Pin),
    /// Lets slices be evicted, flushed and erased again
    Unpin(ops::change::Pin),
    /// Brings slices into memory, the newest generations first, as far as there is room
    Warm(ops::change::Warm),
    /// Reads every byte of slices and compares it with its checksum
    Verify(ops::verify::Verify),
    /// Serves a cache to sources, to other nodes and to operators, until SIGTERM
    Serve(serve::Serve),
    /// Looks at region files, checks them, converts them and makes them
    #[command(subcommand)]
    Region(region::Command),
}

fn main() -> ExitCode {
    let run = Cli::try_parse().map_err(Failure::Usage).and_then(|cli| match cli.command {
        Command::Demo(demo) => demo.run(),
        Command::Doctor(doctor) => doctor.run(),
        Command::Load(load) => load.run(),
        Command::Pull(pull) => pull.run(),
        Command::Repair(repair) => repair.run(),
        Command::Feed(feed) => feed.run(),
        Command::Scan(scan) => scan.run(),
        Command::Ls(ls) => ls.run(),
        Command::Evict(evict) => evict.run(),
        Command::Flush(flush) => flush.run(Operation::Flush),
        Command::Erase(erase) => erase.run(Operation::Erase),
        Command::Pin(pin) => pin.run(Operation::Pin),
        Command::Unpin(unpin) => unpin.run(Operation::Unpin),
        Command::Warm(warm) => warm.run(),
        Command::Verify(verify) => verify.run(),
        Command::Serve(serve) => serve.run(),
        Command::Region(command) => command.run(),
    });
    // Where nobody listens to messages either, nothing is left to do about it.
    match run {
        Ok(()) | Err(Failure::ClosedPipe) => ExitCode::SUCCESS,
        Err(Failure::Said) => ExitCode::FAILURE,
        Err(Failure::Usage(error)) => {
            // Also how help and version come out: then the code is 0.
            let _ = error.print();
            ExitCode::from(error.exit_code() as u8)
        }
        Err(failure @ (Failure::File { .. } | Failure::Cache(_))) => {
            say(&failure);
            ExitCode::FAILURE
        }
    }
}

/// One line on standard error.
pub(crate) fn say(message: &dyn std::fmt::Display) {
    let _ = writeln!(io::stderr(), "pelton: {message}");
}
