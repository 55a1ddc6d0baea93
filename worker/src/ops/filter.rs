//! Which snaps an operation is for, by what is known of them: `bytes>1GiB, idle>10m, state=hot`.
//!
//! All filters must match. What is not known of a snap matches nothing, not even `!=`: an operation never
//! touches a snap by a guess. For the same reason an empty text is an error, not "everything".

#[cfg(test)]
mod tests;
mod value;

use std::fmt;
use std::str::FromStr;

use pelton_region_format::Fingerprint;

use crate::snap::metrics::Summary;
use value::{Kind, Value};

/// Filters that must all match. Without any, everything matches.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Filters(Vec<Filter>);

impl Filters {
    /// Whether a snap, or a generation, is meant.
    pub fn matches(&self, facts: &Facts<'_>) -> bool {
        self.0.iter().all(|filter| filter.matches(facts))
    }

    /// Adds those of another text, so that several may be given one by one.
    #[must_use]
    pub fn and(mut self, others: Filters) -> Filters {
        self.0.extend(others.0);
        self
    }

    /// All names that filters know: the name, what its values are, and what it says. For help texts.
    pub fn names() -> impl Iterator<Item = (&'static str, &'static str, &'static str)> {
        FIELDS.iter().map(|field| (field.name, field.kind.allowed(), field.says))
    }

    /// Whether there is none: then everything matches.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromStr for Filters {
    type Err = FilterError;

    /// Reads filters with commas between them.
    fn from_str(text: &str) -> Result<Filters, FilterError> {
        let mut filters = Vec::new();
        let mut start = 0;
        for part in text.split(',') {
            filters.push(Filter::read(text, start, part)?);
            start += part.len() + 1;
        }
        Ok(Filters(filters))
    }
}

impl fmt::Display for Filters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, filter) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma}{filter}")?;
        }
        Ok(())
    }
}

/// What filters are asked about: one snap, or all snaps of a generation together.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// Its metrics.
    pub summary: &'a Summary,
    /// Milliseconds since the last query, or since it was loaded. Nothing if nobody knows.
    pub idle_ms: Option<u64>,
    /// What decided its blobs, if something is there.
    pub fingerprint: Option<Fingerprint>,
    /// Bytes in memory.
    pub memory_bytes: u64,
    /// Bytes of files.
    pub disk_bytes: u64,
    /// Whether it would survive the process.
    pub durable: bool,
    /// Whether somebody holds a lease.
    pub leased: bool,
    /// Whether somebody has pinned it.
    pub pinned: bool,
}

/// One comparison: `bytes>1GiB`.
#[derive(Clone, Debug, PartialEq)]
struct Filter {
    field: &'static Field,
    relation: Relation,
    wanted: Value,
}

/// Something that is known of a snap, under the name that people write.
struct Field {
    name: &'static str,
    kind: Kind,
    says: &'static str,
    of: fn(&Facts<'_>) -> Option<Value>,
}

const fn field(
    name: &'static str,
    kind: Kind,
    says: &'static str,
    of: fn(&Facts<'_>) -> Option<Value>,
) -> Field {
    Field { name, kind, says, of }
}

use Value::{Moment, Ratio, Span, State, Truth, Whole};

/// All names. `docs/operations.md` has the same table.
static FIELDS: [Field; 30] = [
    field("bytes", Kind::Size, "bytes of all blobs", |facts| Some(Whole(facts.summary.bytes))),
    field("blobs", Kind::Count, "how many blobs", |facts| Some(Whole(facts.summary.blobs))),
    field("slices", Kind::Count, "how many slices", |facts| Some(Whole(facts.summary.slices))),
    field("regions", Kind::Count, "how many regions", |facts| Some(Whole(facts.summary.regions))),
    field("load-at", Kind::Moment, "when it was last loaded from the source", |facts| {
        facts.summary.load_at_ms.map(Moment)
    }),
    field("load-took", Kind::Span, "how long that took", |facts| facts.summary.load_took_ms.map(Span)),
    field("warm-at", Kind::Moment, "when it was last brought from disk into memory", |facts| {
        facts.summary.warm_at_ms.map(Moment)
    }),
    field("warm-took", Kind::Span, "how long that took", |facts| facts.summary.warm_took_ms.map(Span)),
    field("warm-count", Kind::Count, "how often that happened", |facts| {
        Some(Whole(facts.summary.warm_count))
    }),
    field("size-skew", Kind::Ratio, "by how much the largest slice exceeds the smallest", |facts| {
        Some(Ratio(facts.summary.size_skew))
    }),
    field("time-skew", Kind::Ratio, "by how much the slowest load exceeds the fastest", |facts| {
        Some(Ratio(facts.summary.time_skew))
    }),
    field("blob-size", Kind::Size, "bytes of a blob in the mean", |facts| {
        Some(Ratio(facts.summary.blob_size))
    }),
    field("blob-variation", Kind::Ratio, "standard deviation of that over the mean", |facts| {
        Some(Ratio(facts.summary.blob_variation))
    }),
    field(
        "invalid",
        Kind::Truth,
        "whether the load brought another number of blobs than expected, or too much",
        |facts| Some(Truth(facts.summary.invalid)),
    ),
    field("next-load-at", Kind::Moment, "when the next load makes sense", |facts| {
        facts.summary.next_load_at_ms.map(Moment)
    }),
    field("rejected", Kind::Count, "blobs that the source refused to send", |facts| {
        Some(Whole(facts.summary.rejected))
    }),
    field("potential", Kind::Count, "blobs that there would be without sampling and caps", |facts| {
        Some(Whole(facts.summary.potential))
    }),
    field("sample-rate", Kind::Ratio, "the rate suggested for the next load, 0 to 1", |facts| {
        Some(Ratio(facts.summary.sample_rate))
    }),
    field("suggested-slices", Kind::Count, "the number of slices suggested for it", |facts| {
        Some(Whole(facts.summary.suggested_slices))
    }),
    field("expected", Kind::Count, "blobs that the source meant to send", |facts| {
        Some(Whole(facts.summary.expected))
    }),
    field("evicts", Kind::Ratio, "evictions, of a slice in the mean", |facts| {
        Some(Ratio(facts.summary.evicts))
    }),
    field("flushes", Kind::Ratio, "flushes, of a slice in the mean", |facts| {
        Some(Ratio(facts.summary.flushes))
    }),
    field("state", Kind::State, "what it is now", |facts| Some(State(facts.summary.state))),
    field("idle", Kind::Span, "how long ago the last query was, or else the load", |facts| {
        facts.idle_ms.map(Span)
    }),
    field("fingerprint", Kind::Fingerprint, "what decided its blobs", |facts| {
        facts.fingerprint.map(Value::Fingerprint)
    }),
    field("memory", Kind::Size, "bytes in memory", |facts| Some(Whole(facts.memory_bytes))),
    field("disk", Kind::Size, "bytes of files", |facts| Some(Whole(facts.disk_bytes))),
    field("durable", Kind::Truth, "whether it would survive the process", |facts| Some(Truth(facts.durable))),
    field("leased", Kind::Truth, "whether somebody holds a lease", |facts| Some(Truth(facts.leased))),
    field("pinned", Kind::Truth, "whether somebody has pinned it", |facts| Some(Truth(facts.pinned))),
];

impl Filter {
    /// Reads one filter, which begins at byte `start` of the whole text.
    fn read(text: &str, start: usize, part: &str) -> Result<Filter, FilterError> {
        let refuse = |rest: &str, problem| {
            let at = start + part.len() - rest.len();
            let character = text[..at].chars().count() + 1;
            FilterError { text: text.to_owned(), character, problem }
        };
        let rest = part.trim_start();
        if rest.is_empty() {
            return Err(refuse(rest, FilterProblem::Missing));
        }
        let name_end = rest.find(|c: char| "=!<>".contains(c) || c.is_whitespace()).unwrap_or(rest.len());
        let (name, rest_after_name) = rest.split_at(name_end);
        let Some(field) = FIELDS.iter().find(|field| field.name == name) else {
            return Err(refuse(rest, FilterProblem::Name { found: name.to_owned() }));
        };
        let rest = rest_after_name.trim_start();
        let allowed = field.kind.relations();
        let relation = Relation::ALL.into_iter().find(|relation| rest.starts_with(relation.text()));
        let Some(relation) = relation.filter(|relation| allowed.contains(relation)) else {
            let texts: Vec<_> = allowed.iter().map(|relation| relation.text()).collect();
            return Err(refuse(rest, FilterProblem::Relation { name: field.name, allowed: texts.join(" ") }));
        };
        let rest = rest[relation.text().len()..].trim_start();
        let Some(wanted) = field.kind.read(rest.trim_end()) else {
            let found = rest.trim_end().to_owned();
            let (name, allowed) = (field.name, field.kind.allowed());
            return Err(refuse(rest, FilterProblem::Value { name, found, allowed }));
        };
        Ok(Filter { field, relation, wanted })
    }

    fn matches(&self, facts: &Facts<'_>) -> bool {
        let Some(found) = (self.field.of)(facts) else { return false };
        let Some(order) = found.compare(&self.wanted) else { return false };
        match self.relation {
            Relation::Equal => order.is_eq(),
            Relation::Unequal => order.is_ne(),
            Relation::Less => order.is_lt(),
            Relation::LessOrEqual => order.is_le(),
            Relation::More => order.is_gt(),
            Relation::MoreOrEqual => order.is_ge(),
        }
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.field.name, self.relation.text())?;
        self.field.kind.write(&self.wanted, f)
    }
}

impl PartialEq for Field {
    fn eq(&self, other: &Field) -> bool {
        self.name == other.name
    }
}

impl fmt::Debug for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Relation {
    LessOrEqual,
    MoreOrEqual,
    Unequal,
    Equal,
    Less,
    More,
}

impl Relation {
    /// Those of two characters first: `<` begins `<=`.
    const ALL: [Relation; 6] = [
        Relation::LessOrEqual,
        Relation::MoreOrEqual,
        Relation::Unequal,
        Relation::Equal,
        Relation::Less,
        Relation::More,
    ];

    fn text(self) -> &'static str {
        match self {
            Relation::LessOrEqual => "<=",
            Relation::MoreOrEqual => ">=",
            Relation::Unequal => "!=",
            Relation::Equal => "=",
            Relation::Less => "<",
            Relation::More => ">",
        }
    }
}

/// A text is not a filter. Correct it: the message says where, and what may stand there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no filter: at character {character}, {problem}")]
#[non_exhaustive]
pub struct FilterError {
    /// The whole text.
    pub text: String,
    /// Where in it, counted from 1.
    pub character: usize,
    /// What is wrong there.
    pub problem: FilterProblem,
}

/// What is wrong with a filter.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FilterProblem {
    /// Nothing stands there.
    #[error("a filter is missing, such as bytes>1GiB")]
    Missing,
    /// The name is unknown.
    #[error("there is no {found:?}; there are {}", names())]
    Name {
        /// What stands there.
        found: String,
    },
    /// The relation is missing, unknown, or not for this name.
    #[error("{name} needs one of {allowed}")]
    Relation {
        /// The name before it.
        name: &'static str,
        /// What may stand there.
        allowed: String,
    },
    /// The value is none that the name has.
    #[error("{found:?} is no value of {name}, which is {allowed}")]
    Value {
        /// The name before it.
        name: &'static str,
        /// What stands there.
        found: String,
        /// What may stand there.
        allowed: &'static str,
    },
}

fn names() -> String {
    FIELDS.iter().map(|field| field.name).collect::<Vec<_>>().join(", ")
}
