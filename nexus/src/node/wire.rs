//! Operations as messages, and back: what is asked, what is known of a slice, and what came of it.

use std::time::Duration;

use pelton_nexus_proto::messages::{
    Damage as DamageMessage, Filter, OperateProgress, OperateRequest, Operation as Asked, Outcome, Relation,
    SnapResult, SnapState as StateMessage, filter,
};
use pelton_region_format::{Fingerprint, KeyPattern};
use pelton_worker::{
    By, Filters, GenerationState, Operation, OperationError, OperationOptions, OperationOutcome,
    OperationRefusal, OperationResult, Selected, Selection, SnapState, Summary,
};
use tonic::Status;

use crate::told::told;

/// A slice or a generation that was found, here or on a node: what people want to know of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Listed {
    /// The slice's key; of a generation without its last part.
    pub key: String,
    /// What decided the blobs, if it is one.
    pub fingerprint: Option<Fingerprint>,
    /// Whether it would survive the process.
    pub durable: bool,
    /// Whether it could not be brought to the disk, and goes with the process.
    pub unsaved: bool,
    /// Whether it is pinned, or a slice of it is.
    pub pinned: bool,
    /// How many leases there are.
    pub leases: u64,
    /// Bytes of files.
    pub file_bytes: u64,
    /// Bytes in memory.
    pub memory_bytes: u64,
    /// For how long nobody has asked for it, if that is known.
    pub idle: Option<Duration>,
    /// Why it is not tried again yet, and for how long.
    pub failure: Option<(String, Duration)>,
    /// Every figure.
    pub summary: Summary,
}

/// What came of an operation on one slice, here or on a node.
#[derive(Clone, Debug, PartialEq)]
pub struct Operated {
    /// The slice's key.
    pub key: String,
    /// What came of it.
    pub outcome: OperatedOutcome,
    /// Why it was refused or did not work.
    pub why: Option<String>,
    /// How many bytes that is about.
    pub bytes: u64,
    /// How long it took.
    pub took: Duration,
    /// What was found damaged.
    pub damage: Vec<Damage>,
    /// Of a warm that was refused for want of room: how much there is.
    pub free_bytes: Option<u64>,
}

/// What came of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum OperatedOutcome {
    /// It is done.
    Done,
    /// It goes with its last lease.
    Leaving,
    /// It was so already.
    Nothing,
    /// It may not be done now.
    Refused,
    /// Files are not as they were written.
    Damaged,
    /// It was begun and did not work.
    Failed,
}

/// A file that is not as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// Which file, where the cache is.
    pub file: String,
    /// Which of its blocks is the first damaged one.
    pub block: Option<u64>,
    /// What is wrong.
    pub why: String,
}

/// How far an operation on a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progressed {
    /// Bytes that were read.
    pub bytes_done: u64,
    /// Bytes of the files of all that was selected.
    pub bytes_total: u64,
}

/// How an operation on a node is done.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct RemoteOptions {
    /// Only say what would come of it.
    pub dry_run: bool,
    /// Also if it flushes or erases more than half of what is there.
    pub confirmed: bool,
    /// How many bytes a second are read at most.
    pub rate: Option<u64>,
}

/// A request that was understood.
pub(super) struct Understood {
    pub(super) selection: Selection,
    /// Nothing for a search.
    pub(super) operation: Option<Operation>,
    pub(super) asked: Asked,
    pub(super) options: OperationOptions,
    pub(super) confirmed: bool,
}

/// Writes a request. Without an operation it is a search.
pub(super) fn request(
    selection: &Selection,
    operation: Option<Operation>,
    options: &RemoteOptions,
) -> OperateRequest {
    let (asked, keep_cache) = match operation {
        None => (Asked::Search, false),
        Some(Operation::Evict { keep_cache }) => (Asked::Evict, keep_cache),
        Some(Operation::Flush) => (Asked::Flush, false),
        Some(Operation::Erase) => (Asked::Erase, false),
        Some(Operation::Pin) => (Asked::Pin, false),
        Some(Operation::Unpin) => (Asked::Unpin, false),
        Some(Operation::Warm) => (Asked::Warm, false),
        Some(Operation::Verify) => (Asked::Verify, false),
        // The node refuses what nobody knows.
        Some(_) => (Asked::Unspecified, false),
    };
    OperateRequest {
        operation: asked.into(),
        pattern: selection.pattern.to_string(),
        filters: write_filters(&selection.filters),
        dry_run: options.dry_run,
        confirmed: options.confirmed,
        keep_cache,
        bytes_per_second_max: options.rate.unwrap_or(0),
        by_generation: selection.by == By::Generation,
    }
}

impl Understood {
    pub(super) fn read(request: &OperateRequest) -> Result<Understood, Status> {
        let asked = Asked::try_from(request.operation).unwrap_or(Asked::Unspecified);
        let operation = match asked {
            Asked::Search => None,
            Asked::Evict => Some(Operation::Evict { keep_cache: request.keep_cache }),
            Asked::Flush => Some(Operation::Flush),
            Asked::Erase => Some(Operation::Erase),
            Asked::Pin => Some(Operation::Pin),
            Asked::Unpin => Some(Operation::Unpin),
            Asked::Warm => Some(Operation::Warm),
            Asked::Verify => Some(Operation::Verify),
            Asked::Unspecified => {
                let number = request.operation;
                return Err(Status::invalid_argument(format!("operation {number} is not known here")));
            }
        };
        let pattern = read_pattern(&request.pattern, operation.is_none())?;
        let mut filters = request.filters.iter().map(read_filter);
        let filters =
            filters.try_fold(Filters::default(), |all, filter| Ok::<_, Status>(all.and(filter?)))?;
        let by = if request.by_generation { By::Generation } else { By::Slice };
        let mut options = OperationOptions::default();
        options.dry_run = request.dry_run;
        options.rate = Some(request.bytes_per_second_max).filter(|rate| *rate > 0);
        let selection = Selection::new(pattern).filters(filters).by(by);
        Ok(Understood { selection, operation, asked, options, confirmed: request.confirmed })
    }
}

/// Only who looks may leave it out: a variable that is not set must not flush everything.
pub(super) fn read_pattern(text: &str, may_be_empty: bool) -> Result<KeyPattern, Status> {
    if text.is_empty() && may_be_empty {
        return Ok(KeyPattern::ALL);
    }
    text.parse().map_err(|error| Status::invalid_argument(format!("pattern {text:?}: {error}")))
}

/// The relations as people write them.
const RELATIONS: [(&str, Relation); 6] = [
    ("<=", Relation::LessEqual),
    (">=", Relation::GreaterEqual),
    ("!=", Relation::NotEqual),
    ("=", Relation::Equal),
    ("<", Relation::Less),
    (">", Relation::Greater),
];

fn write_filters(filters: &Filters) -> Vec<Filter> {
    let text = filters.to_string();
    let parts = text.split(',').filter(|part| !part.is_empty());
    parts
        .map(|part| {
            let name_end = part.find(|c: char| "=!<>".contains(c)).unwrap_or(part.len());
            let (name, rest) = part.split_at(name_end);
            let written = RELATIONS.into_iter().find(|(text, _)| rest.starts_with(text));
            let (text, relation) = written.unwrap_or(("", Relation::Unspecified));
            let value = filter::Value::Text(rest[text.len()..].to_owned());
            Filter { name: name.to_owned(), relation: relation.into(), value: Some(value) }
        })
        .collect()
}

fn read_filter(filter: &Filter) -> Result<Filters, Status> {
    let refuse = |why: String| Status::invalid_argument(format!("filter {:?}: {why}", filter.name));
    let relation = RELATIONS.into_iter().find(|(_, relation)| i32::from(*relation) == filter.relation);
    let Some((relation, _)) = relation else {
        return Err(refuse(format!("relation {} is not known here", filter.relation)));
    };
    let value = filter.value.as_ref().ok_or_else(|| refuse("it has no value".to_owned()))?;
    let parse = |value: &str| format!("{}{relation}{value}", filter.name).parse::<Filters>();
    let parsed = match value {
        filter::Value::Whole(whole) => {
            // Sizes, counts and moments are read without a unit, times with one.
            parse(&whole.to_string()).or_else(|error| parse(&format!("{whole}ms")).map_err(|_| error))
        }
        filter::Value::Real(real) => parse(&real.to_string()),
        filter::Value::Flag(flag) => parse(&flag.to_string()),
        // What stands after a comma would be another filter.
        filter::Value::Text(text) if text.contains(',') => {
            return Err(refuse("a value has no comma".to_owned()));
        }
        filter::Value::Text(text) => parse(text),
    };
    parsed.map_err(|error| refuse(error.to_string()))
}

impl From<&Selected> for Listed {
    fn from(one: &Selected) -> Listed {
        let key = &one.snaps[0].key;
        let failure = one.snaps.iter().find_map(|snap| snap.failure.as_ref());
        Listed {
            key: key.to_string(),
            fingerprint: one.fingerprint(),
            durable: one.is_durable(),
            unsaved: one.snaps.iter().any(|snap| snap.unsaved),
            pinned: one.is_pinned(),
            leases: one.leases() as u64,
            file_bytes: one.file_bytes(),
            memory_bytes: one.memory_bytes(),
            idle: one.idle(),
            failure: failure.map(|failure| (failure.why.to_string(), failure.again_in)),
            summary: one.summary,
        }
    }
}

impl Listed {
    /// A generation, called without a slice's number.
    pub fn generation(one: &Selected) -> Listed {
        let key = &one.snaps[0].key;
        Listed { key: format!("{}/{}@{}", key.domain(), key.view(), key.clock()), ..Listed::from(one) }
    }

    pub(super) fn into_message(self) -> SnapResult {
        let (failure, again_in) = self.failure.unwrap_or_default();
        SnapResult {
            key: self.key,
            fingerprint: self
                .fingerprint
                .map_or_else(Vec::new, |fingerprint| fingerprint.as_bytes().to_vec()),
            state: write_state(self.summary.state).into(),
            outcome: Outcome::Done.into(),
            durable: self.durable,
            pinned: self.pinned,
            leases: u32::try_from(self.leases).unwrap_or(u32::MAX),
            disk_bytes: self.file_bytes,
            memory_bytes: self.memory_bytes,
            regions: u32::try_from(self.summary.regions).unwrap_or(u32::MAX),
            items: self.summary.blobs,
            item_bytes: self.summary.bytes,
            idle_ms: self.idle.map(millis),
            metrics: write_figures(&self.summary),
            unsaved: self.unsaved,
            failure,
            retry_in_ms: millis(again_in),
            ..SnapResult::default()
        }
    }

    pub(super) fn from_message(message: SnapResult) -> Listed {
        let failed = !message.failure.is_empty();
        let again_in = Duration::from_millis(message.retry_in_ms);
        Listed {
            summary: read_figures(&message),
            key: message.key,
            fingerprint: <[u8; 32]>::try_from(&*message.fingerprint).ok().map(Fingerprint::from_bytes),
            durable: message.durable,
            unsaved: message.unsaved,
            pinned: message.pinned,
            leases: message.leases.into(),
            file_bytes: message.disk_bytes,
            memory_bytes: message.memory_bytes,
            idle: message.idle_ms.map(Duration::from_millis),
            failure: failed.then_some((message.failure, again_in)),
        }
    }
}

impl From<&OperationResult> for Operated {
    fn from(result: &OperationResult) -> Operated {
        let (mut damage, mut free_bytes) = (Vec::new(), None);
        let (outcome, why) = match &result.outcome {
            OperationOutcome::Done => (OperatedOutcome::Done, None),
            OperationOutcome::Leaving => (OperatedOutcome::Leaving, None),
            OperationOutcome::Nothing => (OperatedOutcome::Nothing, None),
            OperationOutcome::Refused(why) => {
                if let OperationRefusal::NoRoom { free, .. } = why {
                    free_bytes = Some(*free);
                }
                (OperatedOutcome::Refused, Some(why.to_string()))
            }
            OperationOutcome::Failed(error) => {
                if let OperationError::Damaged { files } = error {
                    damage.extend(files.iter().map(|file| Damage {
                        file: file.path.to_string_lossy().into_owned(),
                        block: file.block,
                        why: file.why.clone(),
                    }));
                    (OperatedOutcome::Damaged, Some(error.to_string()))
                } else {
                    (OperatedOutcome::Failed, Some(told(error)))
                }
            }
            _ => (OperatedOutcome::Failed, Some("it ended in a way that is not known here".to_owned())),
        };
        let key = result.key.to_string();
        Operated { key, outcome, why, bytes: result.bytes, took: result.took, damage, free_bytes }
    }
}

impl Operated {
    pub(super) fn into_message(self, afterwards: SnapState) -> SnapResult {
        let outcome = match self.outcome {
            OperatedOutcome::Done => Outcome::Done,
            OperatedOutcome::Leaving => Outcome::Leaving,
            OperatedOutcome::Nothing => Outcome::Unchanged,
            OperatedOutcome::Refused => Outcome::Refused,
            OperatedOutcome::Damaged => Outcome::Damaged,
            OperatedOutcome::Failed => Outcome::Failed,
        };
        let damage = self.damage.into_iter().map(|damage| DamageMessage {
            file: damage.file,
            block: damage.block,
            text: damage.why,
        });
        SnapResult {
            key: self.key,
            state: match afterwards {
                SnapState::Gone => StateMessage::Gone,
                SnapState::Cold => StateMessage::Cold,
                SnapState::Loading => StateMessage::Loading,
                SnapState::Warm => StateMessage::Warm,
                SnapState::Hot => StateMessage::Hot,
                SnapState::NoData => StateMessage::NoData,
                SnapState::Failed => StateMessage::Failed,
                _ => StateMessage::Unspecified,
            }
            .into(),
            outcome: outcome.into(),
            text: self.why.unwrap_or_default(),
            moved_bytes: self.bytes,
            took_us: u64::try_from(self.took.as_micros()).unwrap_or(u64::MAX),
            damage: damage.collect(),
            free_bytes: self.free_bytes,
            ..SnapResult::default()
        }
    }

    pub(super) fn from_message(message: SnapResult) -> Operated {
        let outcome = match message.outcome() {
            Outcome::Done => OperatedOutcome::Done,
            Outcome::Leaving => OperatedOutcome::Leaving,
            Outcome::Unchanged => OperatedOutcome::Nothing,
            Outcome::Refused => OperatedOutcome::Refused,
            Outcome::Damaged => OperatedOutcome::Damaged,
            Outcome::Failed | Outcome::Unspecified => OperatedOutcome::Failed,
        };
        let damage = message.damage.into_iter().map(|damage| Damage {
            file: damage.file,
            block: damage.block,
            why: damage.text,
        });
        Operated {
            key: message.key,
            outcome,
            why: Some(message.text).filter(|text| !text.is_empty()),
            bytes: message.moved_bytes,
            took: Duration::from_micros(message.took_us),
            damage: damage.collect(),
            free_bytes: message.free_bytes,
        }
    }
}

impl From<OperateProgress> for Progressed {
    fn from(message: OperateProgress) -> Progressed {
        Progressed { bytes_done: message.bytes_done, bytes_total: message.bytes_total }
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

const STATES: [(StateMessage, GenerationState); 7] = [
    (StateMessage::Cold, GenerationState::Cold),
    (StateMessage::Loading, GenerationState::Loading),
    (StateMessage::Warm, GenerationState::Warm),
    (StateMessage::Hot, GenerationState::Hot),
    (StateMessage::NoData, GenerationState::NoData),
    (StateMessage::Failed, GenerationState::Failed),
    (StateMessage::Mixed, GenerationState::Mixed),
];

fn write_state(state: GenerationState) -> StateMessage {
    let known = STATES.into_iter().find(|(_, known)| *known == state);
    known.map_or(StateMessage::Unspecified, |(message, _)| message)
}

/// Writes and reads the figures of a summary, each by the name that filters use.
macro_rules! figures {
    ($($name:literal $field:ident $kind:ident;)*) => {
        fn write_figures(summary: &Summary) -> std::collections::BTreeMap<String, f64> {
            let mut figures = std::collections::BTreeMap::new();
            $(figures!(@write figures, $name, summary.$field, $kind);)*
            figures
        }

        fn read_figures(message: &SnapResult) -> Summary {
            let figure = |name: &str| message.metrics.get(name).copied();
            let state = STATES.into_iter().find(|(known, _)| *known == message.state());
            Summary {
                state: state.map_or(GenerationState::Cold, |(_, state)| state),
                bytes: message.item_bytes,
                blobs: message.items,
                regions: message.regions.into(),
                $($field: figures!(@read figure($name), $kind),)*
            }
        }
    };
    (@write $figures:ident, $name:literal, $value:expr, whole) => {
        $figures.insert($name.to_owned(), $value as f64);
    };
    (@write $figures:ident, $name:literal, $value:expr, real) => {
        $figures.insert($name.to_owned(), $value);
    };
    (@write $figures:ident, $name:literal, $value:expr, truth) => {
        $figures.insert($name.to_owned(), if $value { 1.0 } else { 0.0 });
    };
    (@write $figures:ident, $name:literal, $value:expr, known) => {
        if let Some(value) = $value {
            $figures.insert($name.to_owned(), value as f64);
        }
    };
    // As a cast does it: what is no such number becomes the nearest one.
    (@read $value:expr, whole) => { $value.unwrap_or(0.0) as u64 };
    (@read $value:expr, real) => { $value.unwrap_or(0.0) };
    (@read $value:expr, truth) => { $value.is_some_and(|value| value != 0.0) };
    (@read $value:expr, known) => { $value.map(|value| value as u64) };
}

figures! {
    "slices" slices whole;
    "load-at" load_at_ms known;
    "load-took" load_took_ms known;
    "warm-at" warm_at_ms known;
    "warm-took" warm_took_ms known;
    "warm-count" warm_count whole;
    "size-skew" size_skew real;
    "time-skew" time_skew real;
    "blob-size" blob_size real;
    "blob-variation" blob_variation real;
    "invalid" invalid truth;
    "next-load-at" next_load_at_ms known;
    "evicts" evicts real;
    "flushes" flushes real;
    "rejected" rejected whole;
    "expected" expected whole;
    "potential" potential whole;
    "sample-rate" sample_rate real;
    "suggested-slices" suggested_slices whole;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary() -> Summary {
        Summary {
            state: GenerationState::Mixed,
            bytes: 1 << 40,
            blobs: 77,
            slices: 3,
            regions: 6,
            load_at_ms: Some(1_719_878_400_123),
            load_took_ms: Some(0),
            warm_at_ms: None,
            warm_took_ms: Some(7),
            warm_count: 4,
            size_skew: 0.25,
            time_skew: f64::INFINITY,
            blob_size: 1.5,
            blob_variation: 0.1,
            invalid: true,
            next_load_at_ms: None,
            evicts: 0.5,
            flushes: 2.0,
            rejected: 5,
            expected: 82,
            potential: 100,
            sample_rate: 0.5,
            suggested_slices: 9,
        }
    }

    #[test]
    fn what_is_listed_comes_back_as_it_was() {
        let full = Listed {
            key: "shop/orders@7".to_owned(),
            fingerprint: Some(Fingerprint::from_bytes([3; 32])),
            durable: true,
            unsaved: true,
            pinned: true,
            leases: 2,
            file_bytes: 10,
            memory_bytes: 20,
            idle: Some(Duration::ZERO),
            failure: Some(("the source is away".to_owned(), Duration::from_secs(3))),
            summary: summary(),
        };
        let plain = Listed {
            fingerprint: None,
            durable: false,
            unsaved: false,
            pinned: false,
            idle: None,
            failure: None,
            ..full.clone()
        };
        for listed in [full, plain] {
            assert_eq!(Listed::from_message(listed.clone().into_message()), listed);
        }
        let names: Vec<&str> = Filters::names().map(|(name, ..)| name).collect();
        for name in write_figures(&summary()).keys() {
            assert!(names.contains(&name.as_str()), "{name} is no name that filters know");
        }
    }

    #[test]
    fn what_came_of_it_comes_back_as_it_was() {
        let damage = vec![
            Damage { file: "/a".to_owned(), block: Some(0), why: "its checksum".to_owned() },
            Damage { file: "/b".to_owned(), block: None, why: "its trailer".to_owned() },
        ];
        use OperatedOutcome::{Damaged, Done, Failed, Leaving, Nothing, Refused};
        for outcome in [Done, Leaving, Nothing, Refused, Damaged, Failed] {
            let operated = Operated {
                key: "a/b@1#0".to_owned(),
                outcome,
                why: (outcome != Done).then(|| "told".to_owned()),
                bytes: 8,
                took: Duration::from_micros(1234),
                damage: damage.clone(),
                free_bytes: Some(0),
            };
            assert_eq!(Operated::from_message(operated.clone().into_message(SnapState::Hot)), operated);
        }
    }

    #[test]
    fn a_request_is_understood_as_it_was_meant() {
        let filters =
            "bytes>1GiB, idle>=10m, state!=no-data, invalid=true, load-at<2026-11-21, size-skew<=0.5";
        let filters: Filters = filters.parse().unwrap();
        let selection =
            Selection::new("shop/*@7".parse::<KeyPattern>().unwrap()).filters(filters).by(By::Generation);
        let all = [
            None,
            Some(Operation::Evict { keep_cache: true }),
            Some(Operation::Evict { keep_cache: false }),
            Some(Operation::Flush),
            Some(Operation::Erase),
            Some(Operation::Pin),
            Some(Operation::Unpin),
            Some(Operation::Warm),
            Some(Operation::Verify),
        ];
        for (index, operation) in all.into_iter().enumerate() {
            let odd = index % 2 == 1;
            let options = RemoteOptions { dry_run: odd, confirmed: !odd, rate: odd.then_some(5) };
            let understood = Understood::read(&request(&selection, operation, &options)).unwrap();
            assert_eq!((&understood.selection, understood.operation), (&selection, operation));
            assert_eq!((understood.options.dry_run, understood.confirmed), (odd, !odd));
            assert_eq!(understood.options.rate, options.rate);
        }
    }

    #[test]
    fn filters_of_other_writers_are_understood_or_refused() {
        use filter::Value::{Flag, Real, Text, Whole};
        let filter = |name: &str, relation: Relation, value| Filter {
            name: name.to_owned(),
            relation: relation.into(),
            value: Some(value),
        };
        for (value, relation, text) in [
            (filter("bytes", Relation::Greater, Whole(4096)), "bytes", "bytes>4096"),
            (filter("idle", Relation::Less, Whole(1500)), "idle", "idle<1500ms"),
            (filter("sample-rate", Relation::Equal, Real(0.5)), "sample-rate", "sample-rate=0.5"),
            (filter("durable", Relation::Equal, Flag(false)), "durable", "durable=false"),
            (filter("state", Relation::NotEqual, Text("hot".to_owned())), "state", "state!=hot"),
        ] {
            assert_eq!(read_filter(&value).unwrap(), text.parse().unwrap(), "{relation}");
        }
        for (bad, says) in [
            (filter("colour", Relation::Equal, Whole(1)), "there is no \"colour\""),
            (filter("bytes", Relation::Unspecified, Whole(1)), "relation 0 is not known here"),
            (filter("state", Relation::Less, Text("hot".to_owned())), "needs one of"),
            (filter("bytes", Relation::Equal, Whole(-1)), "is no value of bytes"),
            (filter("bytes", Relation::Equal, Text("1,state=hot".to_owned())), "has no comma"),
            (filter("bytes", Relation::Equal, Text(String::new())), "is no value of bytes"),
            (Filter { name: "bytes".to_owned(), relation: 3, value: None }, "it has no value"),
            (Filter { name: "bytes".to_owned(), relation: 99, value: None }, "relation 99"),
        ] {
            let status = read_filter(&bad).unwrap_err();
            assert_eq!(status.code(), tonic::Code::InvalidArgument);
            assert!(status.message().contains(says), "{status:?} lacks {says:?}");
        }
    }

    #[test]
    fn only_a_search_may_leave_the_pattern_out_and_nobody_the_operation() {
        let mut request = OperateRequest { operation: Asked::Search.into(), ..OperateRequest::default() };
        assert_eq!(Understood::read(&request).unwrap().selection.pattern, KeyPattern::ALL);
        for operation in [Asked::Evict as i32, Asked::Erase as i32, Asked::Unspecified as i32, 99] {
            request.operation = operation;
            let status = Understood::read(&request).err().expect("it is refused");
            assert_eq!(status.code(), tonic::Code::InvalidArgument, "{operation}");
        }
    }
}
