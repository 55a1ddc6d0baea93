//! Every size and number that bounds what a peer may send, with its name and default.

use std::fmt;
use std::ops::RangeInclusive;

/// Makes the list of limits, their names, defaults, ranges and meanings from one table.
macro_rules! limits {
    ($($(#[doc = $doc:literal])* $variant:ident $name:ident = $default:expr, $min:expr => $most:expr;)*) => {
        /// Which limit. Its name is what errors, messages and the configuration call it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Limit { $($(#[doc = $doc])* $variant,)* }

        impl Limit {
            /// All there are, in the order of `docs/nexus.md`.
            pub const ALL: &[Limit] = &[$(Limit::$variant,)*];

            /// Its one name.
            pub const fn name(self) -> &'static str {
                match self { $(Limit::$variant => stringify!($name),)* }
            }

            /// What it may be set to.
            pub const fn allowed(self) -> RangeInclusive<u64> {
                match self { $(Limit::$variant => $min..=$most,)* }
            }

            /// What it bounds, in a sentence.
            pub const fn meaning(self) -> &'static str {
                match self { $(Limit::$variant => concat!($($doc),*).trim_ascii(),)* }
            }
        }

        /// All limits of one end. Each may be set; [`Limits::default`] is what `docs/nexus.md` tells.
        #[derive(Clone, Debug, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct Limits { $($(#[doc = $doc])* pub $name: u64,)* }

        impl Default for Limits {
            fn default() -> Limits {
                Limits { $($name: $default,)* }
            }
        }

        impl Limits {
            /// The value of one.
            pub const fn max(&self, limit: Limit) -> u64 {
                match limit { $(Limit::$variant => self.$name,)* }
            }

            /// Sets one.
            pub const fn set(&mut self, limit: Limit, max: u64) {
                match limit { $(Limit::$variant => self.$name = max,)* }
            }
        }
    };
}

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

limits! {
    /// One message of gRPC. Most gRPC libraries refuse more than 4 MiB by themselves.
    MessageBytes message_bytes_max = 4 * MIB, 64 * KIB => GIB;
    /// The bytes in one BlobFrame.
    FrameBytes frame_bytes_max = MIB, 4 * KIB => 64 * MIB;
    /// One parcel, packed or inflated; so also one blob with its length.
    ParcelBytes parcel_bytes_max = 256 * MIB, 64 * KIB => 3 * GIB;
    /// The parcels that wait for credit in one sender.
    SenderQueueBytes sender_queue_bytes_max = 2 * MIB, 64 * KIB => 4 * GIB;
    /// The credit that a Want may ask for: one parcel, packed and inflated.
    WantBytes want_bytes_max = 513 * MIB, 64 * KIB => 4 * GIB;
    /// Credit of all streams of a node together.
    InFlightBytes in_flight_bytes_max = GIB, MIB => 1024 * GIB;
    /// One Hello or Welcome.
    HelloBytes hello_bytes_max = 16 * KIB, KIB => MIB;
    /// One SliceRequest: key, loci, filter, sampling, properties.
    RequestBytes request_bytes_max = MIB, KIB => 64 * MIB;
    /// Loci in one SliceRequest.
    Loci loci_max = 4096, 1 => MIB;
    /// A resume token.
    ResumeTokenBytes resume_token_bytes_max = 256, 32 => 64 * KIB;
    /// The text of an Abort. A longer one is cut, not refused.
    TextBytes text_bytes_max = 4 * KIB, 64 => MIB;
    /// The bytes in one RangeChunk on gRPC.
    ChunkBytes chunk_bytes_max = MIB, 4 * KIB => 64 * MIB;
    /// Regions in one Manifest.
    ManifestRegions manifest_regions_max = 16384, 1 => MIB;
    /// The head of one frame on a lane.
    LaneHeadBytes lane_head_bytes_max = 64 * KIB, KIB => MIB;
    /// The body of one frame on a lane.
    LaneBodyBytes lane_body_bytes_max = 64 * MIB, 64 * KIB => GIB;
    /// Streams that a node serves at once.
    Streams streams_max = 256, 1 => 64 * KIB;
    /// Streams of one peer at once.
    PeerStreams peer_streams_max = 64, 1 => 64 * KIB;
    /// Connections to a node at once.
    Connections connections_max = 1024, 1 => 64 * KIB;
    /// Connections of one peer at once.
    PeerConnections peer_connections_max = 16, 1 => 64 * KIB;
    /// Lanes of one peer at once, tokens that are not used yet included.
    PeerLanes peer_lanes_max = 16, 0 => 4 * KIB;
}

impl Limits {
    /// Whether so much is allowed.
    ///
    /// # Errors
    /// [`LimitExceeded`] with the limit's name and both numbers. Exactly the limit is allowed.
    pub fn check(&self, limit: Limit, found: u64) -> Result<(), LimitExceeded> {
        let max = self.max(limit);
        if found <= max { Ok(()) } else { Err(LimitExceeded { limit, found, max }) }
    }

    /// Sets one by its name, as a person has written it.
    ///
    /// # Errors
    /// [`LimitRefused`]: there is no such limit, or it may not be so. Nothing was set.
    pub fn set_named(&mut self, name: &str, max: u64) -> Result<(), LimitRefused> {
        let limit = Limit::ALL.iter().copied().find(|limit| limit.name() == name);
        let limit = limit.ok_or_else(|| LimitRefused::Unknown { name: name.to_owned() })?;
        if !limit.allowed().contains(&max) {
            return Err(LimitRefused::Value { limit, value: max, allowed: limit.allowed() });
        }
        self.set(limit, max);
        Ok(())
    }

    /// Whether they go together: what goes in one message must fit one.
    ///
    /// # Errors
    /// [`LimitRefused`] for the first that does not.
    pub fn check_together(&self) -> Result<(), LimitRefused> {
        for limit in [Limit::FrameBytes, Limit::ChunkBytes] {
            let most = self.message_bytes_max.saturating_sub(AROUND_BYTES_MAX);
            if self.max(limit) > most {
                let allowed = *limit.allowed().start()..=most;
                return Err(LimitRefused::Value { limit, value: self.max(limit), allowed });
            }
        }
        Ok(())
    }
}

/// What a message has around its bytes: counts, checksums.
const AROUND_BYTES_MAX: u64 = 32 * KIB;

/// A limit can't be set so. Correct it; the message names all there is to know.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LimitRefused {
    /// There is none of that name.
    #[error("there is no limit {name:?}; there are {}", names())]
    Unknown {
        /// What was written.
        name: String,
    },
    /// It may not be so.
    #[error(
        "{} is {}, allowed is {} to {}", limit.name(), Told(*limit, *value),
        Told(*limit, *allowed.start()), Told(*limit, *allowed.end())
    )]
    Value {
        /// Which limit.
        limit: Limit,
        /// What it was set to, or is by default.
        value: u64,
        /// What it may be, beside the others.
        allowed: RangeInclusive<u64>,
    },
}

fn names() -> String {
    Limit::ALL.iter().map(|limit| limit.name()).collect::<Vec<_>>().join(", ")
}

/// Sizes in the largest unit that needs no rounding, counts as they are.
struct Told(Limit, u64);

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let &Told(limit, value) = self;
        let units = [(GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")];
        let unit = units.iter().find(|(unit, _)| value >= *unit && value.is_multiple_of(*unit));
        match unit {
            Some((unit, name)) if limit.name().ends_with("_bytes_max") => {
                write!(f, "{} {name}", value / unit)
            }
            _ => write!(f, "{value}"),
        }
    }
}

/// More than a limit allows. Nothing was taken. Less at a time may work, or a higher limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {found} is more than the {max} that are allowed", limit.name())]
pub struct LimitExceeded {
    /// Which limit.
    pub limit: Limit,
    /// What was asked for or declared.
    pub found: u64,
    /// What is allowed.
    pub max: u64,
}

#[cfg(feature = "grpc")]
impl From<LimitExceeded> for tonic::Status {
    fn from(error: LimitExceeded) -> tonic::Status {
        tonic::Status::resource_exhausted(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_limit_allows_its_edge_and_names_itself_one_above() {
        let defaults = Limits::default();
        for (at, &limit) in Limit::ALL.iter().enumerate() {
            let max = defaults.max(limit);
            assert!(max > 0 && defaults.check(limit, max).is_ok(), "{}", limit.name());
            let error = defaults.check(limit, max + 1).unwrap_err();
            assert_eq!(error, LimitExceeded { limit, found: max + 1, max });
            assert!(error.to_string().starts_with(&format!("{}: ", limit.name())), "{error}");

            // Setting one changes that one.
            let mut limits = defaults.clone();
            limits.set(limit, at as u64 + 7);
            for &other in Limit::ALL {
                let expected = if other == limit { at as u64 + 7 } else { defaults.max(other) };
                assert_eq!(limits.max(other), expected);
            }
        }
    }

    #[cfg(feature = "grpc")]
    #[test]
    fn a_limit_is_resource_exhausted_for_grpc_and_the_text_begins_with_its_name() {
        let status = tonic::Status::from(Limits::default().check(Limit::Streams, 257).unwrap_err());
        assert_eq!(status.code(), tonic::Code::ResourceExhausted);
        assert_eq!(status.message(), "streams_max: 257 is more than the 256 that are allowed");
    }

    /// The page that foreign implementers read tells the same limits.
    #[test]
    fn the_documented_table_is_this_one() {
        let page = include_str!("../../docs/nexus.md");
        for &limit in Limit::ALL {
            let max = Limits::default().max(limit);
            let (min, most) = limit.allowed().into_inner();
            let allowed = format!("{} to {}", Told(limit, min), Told(limit, most));
            let (name, max, meaning) = (limit.name(), Told(limit, max), limit.meaning());
            let row = format!("| {name} | {max} | {meaning} | {allowed} |\n");
            assert!(page.contains(&row), "docs/nexus.md lacks:\n{row}");
        }
        let documented = page.split("## 4. Limits").nth(1).unwrap().split("## 5.").next().unwrap();
        assert_eq!(documented.lines().filter(|line| line.contains("_max |")).count(), Limit::ALL.len());
    }

    #[test]
    fn a_limit_is_set_by_its_name_within_its_range_and_refused_with_name_value_and_range() {
        for &limit in Limit::ALL {
            let (min, most) = limit.allowed().into_inner();
            assert!(limit.allowed().contains(&Limits::default().max(limit)), "{}", limit.name());
            for value in [min, most] {
                let mut limits = Limits::default();
                assert_eq!(limits.set_named(limit.name(), value), Ok(()));
                assert_eq!(limits.max(limit), value);
            }
            for value in [min.checked_sub(1), Some(most + 1)].into_iter().flatten() {
                let mut limits = Limits::default();
                let error = limits.set_named(limit.name(), value).unwrap_err().to_string();
                assert!(error.starts_with(&format!("{} is ", limit.name())), "{error}");
                assert_eq!(limits, Limits::default());
            }
        }
        let refused = |name: &str, value| Limits::default().set_named(name, value).unwrap_err().to_string();
        assert_eq!(refused("streams_max", 0), "streams_max is 0, allowed is 1 to 65536");
        assert_eq!(refused("text_bytes_max", 63), "text_bytes_max is 63, allowed is 64 to 1 MiB");
        let unknown = refused("stream_max", 1);
        assert!(
            unknown.starts_with("there is no limit \"stream_max\"; there are message_bytes_max, "),
            "{unknown}"
        );
    }

    #[test]
    fn what_goes_in_one_message_must_fit_one() {
        assert_eq!(Limits::default().check_together(), Ok(()));
        for limit in [Limit::FrameBytes, Limit::ChunkBytes] {
            let mut limits = Limits::default();
            limits.set(limit, 4 * MIB - 32 * KIB);
            assert_eq!(limits.check_together(), Ok(()));
            limits.set(limit, 4 * MIB);
            let error = limits.check_together().unwrap_err().to_string();
            assert_eq!(error, format!("{} is 4 MiB, allowed is 4 KiB to 4064 KiB", limit.name()));
        }
    }
}
