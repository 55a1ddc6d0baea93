//! Every size and number that bounds what a peer may send, with its name and default.

/// Makes the list of limits, their names, defaults and meanings from one table.
macro_rules! limits {
    ($($(#[doc = $doc:literal])* $variant:ident $name:ident = $default:expr;)*) => {
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
    MessageBytes message_bytes_max = 4 * MIB;
    /// The bytes in one BlobFrame.
    FrameBytes frame_bytes_max = MIB;
    /// One parcel, packed or inflated; so also one blob with its length.
    ParcelBytes parcel_bytes_max = 256 * MIB;
    /// The parcels that wait for credit in one sender.
    SenderQueueBytes sender_queue_bytes_max = 2 * MIB;
    /// The credit that a Want may ask for: one parcel, packed and inflated.
    WantBytes want_bytes_max = 513 * MIB;
    /// Credit of all streams of a node together.
    InFlightBytes in_flight_bytes_max = GIB;
    /// One Hello or Welcome.
    HelloBytes hello_bytes_max = 16 * KIB;
    /// One SliceRequest: key, loci, filter, sampling, properties.
    RequestBytes request_bytes_max = MIB;
    /// Loci in one SliceRequest.
    Loci loci_max = 4096;
    /// A resume token.
    ResumeTokenBytes resume_token_bytes_max = 256;
    /// The text of an Abort. A longer one is cut, not refused.
    TextBytes text_bytes_max = 4 * KIB;
    /// The bytes in one RangeChunk on gRPC.
    ChunkBytes chunk_bytes_max = MIB;
    /// Regions in one Manifest.
    ManifestRegions manifest_regions_max = 16384;
    /// The head of one frame on a lane.
    LaneHeadBytes lane_head_bytes_max = 64 * KIB;
    /// The body of one frame on a lane.
    LaneBodyBytes lane_body_bytes_max = 64 * MIB;
    /// Streams that a node serves at once.
    Streams streams_max = 256;
    /// Streams of one peer at once.
    PeerStreams peer_streams_max = 64;
    /// Connections to a node at once.
    Connections connections_max = 1024;
    /// Connections of one peer at once.
    PeerConnections peer_connections_max = 16;
    /// Lanes of one peer at once, tokens that are not used yet included.
    PeerLanes peer_lanes_max = 16;
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
            let row = format!("| {} | {} | {} |", limit.name(), told(limit, max), limit.meaning());
            assert!(page.contains(&row), "docs/nexus.md lacks:\n{row}");
        }
        let documented = page.split("## 4. Limits").nth(1).unwrap().split("## 5.").next().unwrap();
        assert_eq!(documented.lines().filter(|line| line.contains("_max |")).count(), Limit::ALL.len());
    }

    /// Sizes in units, counts as they are.
    fn told(limit: Limit, max: u64) -> String {
        let units = [(GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")];
        let unit = units.iter().find(|(unit, _)| max.is_multiple_of(*unit));
        match unit {
            Some((unit, name)) if limit.name().ends_with("_bytes_max") => format!("{} {name}", max / unit),
            _ => max.to_string(),
        }
    }
}
