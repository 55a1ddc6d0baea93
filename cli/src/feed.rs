//! `pelton feed`: files as a source of slices.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use pelton::files::{self, FileError, FileFormat, Input};
use pelton::nexus::feed::{FeedService, Offering, Outlet, SliceRequest, Source, SourceError};
use pelton::nexus::{Door, LaneLimits};
use pelton::{Fingerprint, Key, KeyPattern};

use crate::failure::Failure;
use crate::load::{Format, runtime};
use crate::stdout::Stdout;
use crate::tls::TlsOptions;

/// The command line of `feed`.
#[derive(Args)]
pub(crate) struct Feed {
    /// Where to listen; port 0 lets the system pick one
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: SocketAddr,
    /// What every slice consists of: files, or all files of folders
    #[arg(long, value_name = "FILE|DIR", num_args = 1.., required = true)]
    from: Vec<PathBuf>,
    /// How blobs stand there
    #[arg(long, value_enum)]
    format: Format,
    /// Only slices of which the key matches, as domain/view@clock#slice; a part that is left out, or is *, means
    /// all. Several may be given [default: *]
    #[arg(long = "key", value_name = "PATTERN")]
    keys: Vec<KeyPattern>,
    #[command(flatten)]
    tls: TlsOptions,
}

impl Feed {
    /// Serves until it is ended from outside.
    pub(crate) fn run(self) -> Result<(), Failure> {
        let security = self.tls.server(&["feed"])?;
        let mut inputs = Vec::new();
        for path in &self.from {
            inputs.extend(files::find(path)?);
        }
        let format = FileFormat::from(self.format);
        let Some(fingerprint) = files::fingerprint(&inputs, format, "none", 1, &mut |_| {})? else {
            return Err(Failure::Cache("a pipe can be read only once; feed regular files".to_owned()));
        };
        let source = Files { inputs: Arc::new(inputs), format, fingerprint, keys: self.keys };
        runtime()?.block_on(async {
            let listening = Door::open(self.listen, security, LaneLimits::default()).await;
            let refuse = |error: std::io::Error| Failure::Cache(format!("{}: {error}", self.listen));
            let door = listening.map_err(refuse)?;
            let mut stdout = Stdout::open()?;
            stdout.line(format!("feeding at nexus://{}, fingerprint {fingerprint}", door.address()))?;
            stdout.flush()?;
            let service = FeedService::of_source(source).lanes(door.lanes().clone());
            service.serve_behind(door, std::future::pending()).await.map_err(refuse)
        })
    }
}

/// Gives the same files for each slice that is asked for, whatever its fingerprint.
struct Files {
    inputs: Arc<Vec<Input>>,
    format: FileFormat,
    /// Of what the files were at the start: a broken stream goes on only in these.
    fingerprint: Fingerprint,
    /// Of which slices; without any, of all.
    keys: Vec<KeyPattern>,
}

impl Source for Files {
    fn open(&self, request: &SliceRequest) -> Result<Offering, SourceError> {
        let key: Key = request.key.parse().map_err(|error| SourceError::Invalid(format!("key: {error}")))?;
        if !self.keys.is_empty() && !self.keys.iter().any(|pattern| pattern.matches(&key)) {
            return Err(SourceError::NotFound);
        }
        let (inputs, format) = (Arc::clone(&self.inputs), self.format);
        let send = move |outlet: &Outlet| {
            for input in inputs.iter() {
                format.walk(input, &mut |_| {}, &mut |blob| outlet.push(blob).map_err(Stop::Stream))?;
                input.check_unchanged().map_err(Stop::from)?;
            }
            Ok(outlet.tally())
        };
        Ok(Offering::new(send).replayable(self.fingerprint.as_bytes().to_vec()))
    }
}

/// Why the files are not read on.
enum Stop {
    File(FileError),
    Stream(SourceError),
}

impl From<FileError> for Stop {
    fn from(error: FileError) -> Stop {
        Stop::File(error)
    }
}

impl From<Stop> for SourceError {
    fn from(stop: Stop) -> SourceError {
        match stop {
            Stop::File(error) => SourceError::failed(error),
            Stop::Stream(error) => error,
        }
    }
}
