//! The other process of a pair: this program once more, in another role.
//!
//! It says one line of words when it is ready, does what it is asked for line by line, and ends with its standard input.

use std::io::{self, BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitCode, Stdio};

use super::{holder, source};
use crate::frame::Failure;

/// Says what this process is to be: a role and its words.
const ASKED: &str = "PELTON_BENCH_ROLE";
/// Between words. Folders have no such thing in their names.
const BETWEEN: char = '\n';

/// The other process. Dropping it ends it.
pub(super) struct OtherProcess {
    child: Child,
    asks: ChildStdin,
    says: BufReader<ChildStdout>,
}

impl OtherProcess {
    /// Starts it, and waits for the words that it says when it is ready.
    pub(super) fn start(role: &[&str]) -> Result<(OtherProcess, Vec<String>), Failure> {
        let mut child = Command::new(std::env::current_exe()?)
            .env(ASKED, role.join(&BETWEEN.to_string()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let asks = child.stdin.take().expect("it is piped");
        let says = BufReader::new(child.stdout.take().expect("it is piped"));
        let mut other = OtherProcess { child, asks, says };
        let words = other.listen()?;
        Ok((other, words))
    }

    /// Asks for something, and waits until it is done.
    pub(super) fn ask(&mut self, what: &str) -> Result<(), Failure> {
        writeln!(self.asks, "{what}")?;
        let words = self.listen()?;
        if words == ["done"] { Ok(()) } else { Err(Failure::because(words.join(" "))) }
    }

    /// Its number, to count its processor time.
    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    fn listen(&mut self) -> Result<Vec<String>, Failure> {
        let mut line = String::new();
        if self.says.read_line(&mut line)? == 0 {
            return Err(Failure::because("the other process has ended"));
        }
        Ok(line.split_whitespace().map(str::to_owned).collect())
    }
}

impl Drop for OtherProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Is the other process if this one was started for that.
pub(crate) fn serve_if_asked() -> Option<ExitCode> {
    let role = std::env::var(ASKED).ok()?;
    let words: Vec<&str> = role.split(BETWEEN).collect();
    let served = match words[..] {
        ["source", seed, texture, folder] => source::serve(seed, texture, folder),
        ["holder", seed, bytes, folder] => holder::serve(seed, bytes, folder),
        _ => Err(Failure::because(format!("{ASKED} names no role"))),
    };
    match served {
        Ok(()) => Some(ExitCode::SUCCESS),
        Err(error) => {
            eprintln!("pelton-bench: the other process failed: {}", error.in_full());
            Some(ExitCode::FAILURE)
        }
    }
}

/// Says that this process is ready, with some words, and does what it is asked for until nobody asks any more.
pub(super) fn obey(ready: &[String], mut on: impl FnMut(&str) -> Result<(), Failure>) -> Result<(), Failure> {
    println!("{}", ready.join(" "));
    io::stdout().flush()?;
    for line in io::stdin().lock().lines() {
        match on(&line?) {
            Ok(()) => println!("done"),
            Err(error) => println!("{}", error.in_full().replace('\n', " ")),
        }
        io::stdout().flush()?;
    }
    Ok(())
}
