//! What this machine and these folders allow a cache to do, and what would be worth changing.
//!
//! Everything is asked by the same probes that a cache uses when it opens, so what is said here is what it will
//! find. Nothing is claimed for good and no folder becomes a spindle; what a probe writes is gone afterwards.

mod machine;
mod spindle;

use std::path::PathBuf;

use crate::config::Config;
use crate::config::host::Host;

use machine::Machine;

/// What a look at the machine and the spindles has found.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Diagnosis {
    /// What concerns the machine, the container or the process.
    pub machine: Vec<Finding>,
    /// What concerns each of the configured folders, in their order.
    pub spindles: Vec<SpindleDiagnosis>,
}

/// What was found about one folder.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SpindleDiagnosis {
    /// The folder.
    pub folder: PathBuf,
    /// What was found.
    pub findings: Vec<Finding>,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Finding {
    /// What was looked at, the same in every version: `io-uring`.
    pub name: &'static str,
    /// Whether it is as a cache wants it.
    pub verdict: Verdict,
    /// What it is, and what that means.
    pub found: String,
    /// What to change, if something would be better otherwise.
    pub advice: Option<String>,
}

/// How a finding concerns a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// A cache works, but slower than it could, or with less than one may expect.
    Note,
    /// A cache does not open, or takes no loads, until it is changed.
    Problem,
}

impl Diagnosis {
    /// The worst there is. With [`Verdict::Problem`] the configuration does not work here.
    pub fn verdict(&self) -> Verdict {
        let of_spindles = self.spindles.iter().flat_map(|spindle| &spindle.findings);
        let verdicts = self.machine.iter().chain(of_spindles).map(|finding| finding.verdict);
        verdicts.max().unwrap_or(Verdict::Ok)
    }
}

impl Finding {
    fn ok(name: &'static str, found: impl Into<String>) -> Finding {
        Finding { name, verdict: Verdict::Ok, found: found.into(), advice: None }
    }

    fn note(name: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Finding {
        Finding { name, verdict: Verdict::Note, found: found.into(), advice: Some(advice.into()) }
    }

    fn problem(name: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Finding {
        Finding { name, verdict: Verdict::Problem, found: found.into(), advice: Some(advice.into()) }
    }
}

/// Looks at the machine, and at each folder of the configuration, whether a cache would open and how it would run.
///
/// Folders are looked at side by side, for ten seconds at most: a disk that hangs longer is a finding. In a
/// folder that is free, small files are written and removed; one that a cache holds is only looked at.
pub fn doctor(config: &Config) -> Diagnosis {
    let host = Host::of_this_process();
    Diagnosis {
        machine: Machine::look(&host).findings(config, &host),
        spindles: spindle::look_at_all(config),
    }
}

/// An error with its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
