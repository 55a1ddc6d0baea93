//! `pelton doctor`: what this machine and the spindles' disks allow, and what to change.

use std::fmt::Write;

use clap::Args;
use pelton::{Diagnosis, Finding, Verdict, doctor};
use serde::Serialize;

use crate::cache::CacheOptions;
use crate::failure::{Failure, one_line, shown};
use crate::stdout::Stdout;

/// Where the text of a finding begins, below its verdict and its name.
const TEXT_COLUMN: usize = 31;
/// How wide a line is at most, if its words allow.
const LINE_WIDTH: usize = 100;

/// The command line of `doctor`.
#[derive(Args)]
pub(crate) struct Doctor {
    #[command(flatten)]
    cache: CacheOptions,
    /// One line of JSON
    #[arg(long)]
    json: bool,
}

impl Doctor {
    pub(crate) fn run(self) -> Result<(), Failure> {
        let diagnosis = doctor(&self.cache.config()?);
        let mut stdout = Stdout::open()?;
        if self.json {
            let said = serde_json::to_string(&Said::from(&diagnosis));
            stdout.line(said.expect("it has nothing that JSON lacks"))?;
        } else {
            let mut text = String::from("machine\n");
            diagnosis.machine.iter().for_each(|finding| add(&mut text, finding));
            for spindle in &diagnosis.spindles {
                text.push_str(&format!("{}\n", shown(&spindle.folder)));
                spindle.findings.iter().for_each(|finding| add(&mut text, finding));
            }
            stdout.write(text.as_bytes())?;
        }
        stdout.flush()?;
        match diagnosis.verdict() {
            Verdict::Problem => Err(Failure::Said),
            Verdict::Ok | Verdict::Note => Ok(()),
        }
    }
}

fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Ok => "ok",
        Verdict::Note => "note",
        Verdict::Problem => "problem",
    }
}

fn add(text: &mut String, finding: &Finding) {
    let head = format!("  {:<8} {:<19} ", word(finding.verdict), finding.name);
    debug_assert!(head.len() == TEXT_COLUMN, "names fit their column");
    text.push_str(&head);
    wrap(text, &one_line(&finding.found));
    if let Some(advice) = &finding.advice {
        let _ = write!(text, "{:TEXT_COLUMN$}", "");
        wrap(text, &format!("-> {}", one_line(advice)));
    }
}

/// Adds words, and ends the line; what does not fit stands below its beginning.
fn wrap(text: &mut String, words: &str) {
    let mut column = TEXT_COLUMN;
    for (number, word) in words.split(' ').enumerate() {
        let width = word.chars().count();
        if number > 0 && column + 1 + width > LINE_WIDTH {
            let _ = write!(text, "\n{:TEXT_COLUMN$}", "");
            column = TEXT_COLUMN;
        } else if number > 0 {
            text.push(' ');
            column += 1;
        }
        text.push_str(word);
        column += width;
    }
    text.push('\n');
}

#[derive(Serialize)]
struct Said<'a> {
    verdict: &'static str,
    machine: Vec<SaidFinding<'a>>,
    spindles: Vec<SaidSpindle<'a>>,
}

#[derive(Serialize)]
struct SaidSpindle<'a> {
    folder: String,
    findings: Vec<SaidFinding<'a>>,
}

#[derive(Serialize)]
struct SaidFinding<'a> {
    name: &'a str,
    verdict: &'static str,
    found: &'a str,
    advice: Option<&'a str>,
}

impl<'a> From<&'a Diagnosis> for Said<'a> {
    fn from(diagnosis: &'a Diagnosis) -> Said<'a> {
        let said = |findings: &'a [Finding]| {
            let said = |finding: &'a Finding| SaidFinding {
                name: finding.name,
                verdict: word(finding.verdict),
                found: &finding.found,
                advice: finding.advice.as_deref(),
            };
            findings.iter().map(said).collect()
        };
        let spindle = |spindle: &'a pelton::SpindleDiagnosis| SaidSpindle {
            folder: spindle.folder.to_string_lossy().into_owned(),
            findings: said(&spindle.findings),
        };
        Said {
            verdict: word(diagnosis.verdict()),
            machine: said(&diagnosis.machine),
            spindles: diagnosis.spindles.iter().map(spindle).collect(),
        }
    }
}
