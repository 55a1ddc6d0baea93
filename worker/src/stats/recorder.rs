//! The way to the recorder of the `metrics` facade, and the list of all that goes there.
//!
//! Without the feature there is no way, and what is registered is only counted. Nothing is ever installed: a recorder
//! is the caller's, given to the builder or installed for the process before the cache is opened.

#[cfg(feature = "metrics")]
use std::fmt;
#[cfg(feature = "metrics")]
use std::sync::Arc;

#[cfg(feature = "metrics")]
use metrics::{Key, Label, Level as Verbosity, Metadata, Recorder};

use crate::stats::meter::{Count, Level};
use crate::stats::wait_times::WaitMeter;

/// What a figure is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// It only grows.
    Counter,
    /// It goes up and down. Told when somebody asks for the statistics.
    Gauge,
    /// Many times, in seconds.
    Histogram,
}

/// A figure that goes to the recorder. `docs/operations.md` lists the same ones.
#[derive(Debug)]
pub(crate) struct Figure {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
}

/// Where figures are registered: each once, when the cache is opened.
#[derive(Clone, Default)]
#[cfg_attr(not(feature = "metrics"), derive(Debug))]
pub(crate) struct Registrar {
    /// None: whatever is installed for the process.
    #[cfg(feature = "metrics")]
    recorder: Option<Arc<dyn Recorder + Send + Sync>>,
}

/// The labels of a figure, each with its value.
pub(crate) type Labels<'l> = &'l [(&'static str, &'l str)];

impl Registrar {
    pub(crate) fn count(&self, figure: &Figure, labels: Labels<'_>) -> Count {
        debug_assert_eq!(figure.kind, Kind::Counter, "{}", figure.name);
        #[cfg(feature = "metrics")]
        let twin = self.with(|recorder| recorder.register_counter(&key(figure, labels), &METADATA));
        let _ = labels;
        Count {
            #[cfg(feature = "metrics")]
            twin,
            ..Count::default()
        }
    }

    pub(crate) fn level(&self, figure: &Figure, labels: Labels<'_>) -> Level {
        debug_assert_eq!(figure.kind, Kind::Gauge, "{}", figure.name);
        let _ = labels;
        Level {
            #[cfg(feature = "metrics")]
            twin: self.with(|recorder| recorder.register_gauge(&key(figure, labels), &METADATA)),
        }
    }

    pub(crate) fn waits(&self, figure: &Figure) -> WaitMeter {
        debug_assert_eq!(figure.kind, Kind::Histogram, "{}", figure.name);
        WaitMeter {
            #[cfg(feature = "metrics")]
            twin: self.with(|recorder| recorder.register_histogram(&key(figure, &[]), &METADATA)),
            ..WaitMeter::default()
        }
    }
}

#[cfg(feature = "metrics")]
impl Registrar {
    /// For a recorder of the caller's.
    pub(crate) fn of(recorder: Arc<dyn Recorder + Send + Sync>) -> Registrar {
        Registrar { recorder: Some(recorder) }
    }

    fn with<T>(&self, register: impl FnOnce(&dyn Recorder) -> T) -> T {
        match &self.recorder {
            Some(recorder) => register(&**recorder),
            None => metrics::with_recorder(register),
        }
    }
}

#[cfg(feature = "metrics")]
static METADATA: Metadata<'static> = Metadata::new("pelton", Verbosity::INFO, Some(module_path!()));

#[cfg(feature = "metrics")]
fn key(figure: &Figure, labels: Labels<'_>) -> Key {
    let labels: Vec<Label> =
        labels.iter().map(|(name, value)| Label::new(*name, (*value).to_owned())).collect();
    Key::from_parts(figure.name, labels)
}

#[cfg(feature = "metrics")]
impl fmt::Debug for Registrar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.recorder.is_some() { "the caller's recorder" } else { "the process's recorder" })
    }
}
