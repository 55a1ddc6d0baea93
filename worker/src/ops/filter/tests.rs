//! Each name with a match and a non-match, what is refused and how, and that texts read back.

use proptest::prelude::*;

use super::*;
use crate::snap::metrics::{
    BlobSizes, GenerationMetrics, GenerationState, LoadFacts, MetricsLimits, SliceMetrics,
};
use crate::units::{GIB, MIB};

const NOVEMBER_21: u64 = 1_795_219_200_000;

fn summary() -> Summary {
    Summary {
        state: GenerationState::Hot,
        bytes: 2 * GIB,
        blobs: 30_000,
        slices: 4,
        regions: 8,
        load_at_ms: Some(NOVEMBER_21),
        load_took_ms: Some(2_500),
        warm_at_ms: Some(NOVEMBER_21 + 3_600_000),
        warm_took_ms: Some(250),
        warm_count: 3,
        size_skew: 0.25,
        time_skew: 1.5,
        blob_size: 65_536.5,
        blob_variation: 0.75,
        invalid: true,
        next_load_at_ms: Some(NOVEMBER_21 + 86_400_000),
        evicts: 2.5,
        flushes: 0.5,
        rejected: 7,
        expected: 30_001,
        potential: 60_000,
        sample_rate: 0.5,
        suggested_slices: 5,
    }
}

fn facts(summary: &Summary) -> Facts<'_> {
    Facts {
        summary,
        idle_ms: Some(600_000),
        fingerprint: Some(Fingerprint::from_bytes([0xab; 32])),
        memory_bytes: GIB,
        disk_bytes: 2 * GIB + 4096,
        durable: true,
        leased: false,
        pinned: false,
    }
}

fn matches(text: &str) -> bool {
    let filters: Filters = text.parse().unwrap_or_else(|error| panic!("{error}"));
    filters.matches(&facts(&summary()))
}

#[test]
fn each_name_has_a_match_and_a_non_match() {
    let fingerprint = "ab".repeat(32);
    let (is_same, is_other) = (format!("fingerprint={fingerprint}"), format!("fingerprint!={fingerprint}"));
    let cases = [
        // The 19 that a generation is searched by.
        ("bytes>1GiB", "bytes>2GiB"),
        ("blobs=30000", "blobs<30000"),
        ("slices<=4", "slices<4"),
        ("regions>=8", "regions>8"),
        ("load-at=2026-11-21", "load-at>2026-11-21"),
        ("load-took>=2s", "load-took<2500ms"),
        ("warm-at<=2026-11-21T01:00:00Z", "warm-at<2026-11-21T01:00:00Z"),
        ("warm-took=250ms", "warm-took>1s"),
        ("warm-count!=2", "warm-count!=3"),
        ("size-skew<0.5", "size-skew>0.5"),
        ("time-skew=1.5", "time-skew!=1.5"),
        ("blob-size>64KiB", "blob-size<=64KiB"),
        ("blob-variation>0.7", "blob-variation>0.8"),
        ("invalid=true", "invalid=false"),
        ("next-load-at<2026-11-23", "next-load-at>=2026-11-23"),
        ("rejected>0", "rejected=0"),
        ("potential=60000", "potential<60000"),
        ("sample-rate<=0.5", "sample-rate<0.5"),
        ("suggested-slices>4", "suggested-slices=4"),
        // And more.
        ("expected=30001", "expected=30000"),
        ("evicts>2", "evicts>3"),
        ("flushes<1", "flushes>=1"),
        ("state=hot", "state=warm"),
        ("idle>=10m", "idle>10m"),
        (is_same.as_str(), is_other.as_str()),
        ("memory=1GiB", "memory!=1GiB"),
        ("disk>2GiB", "disk<2GiB"),
        ("durable=true", "durable=false"),
        ("leased=false", "leased=true"),
        ("pinned=false", "pinned=true"),
    ];
    for (matching, other) in cases {
        assert!(matches(matching), "{matching}");
        assert!(!matches(other), "{other}");
    }
    let name = |text: &str| text[..text.find(['=', '!', '<', '>']).unwrap()].to_owned();
    let tested: Vec<_> = cases.iter().map(|(text, _)| name(text)).collect();
    assert_eq!(tested, Filters::names().map(|(name, ..)| name).collect::<Vec<_>>());
}

#[test]
fn each_relation_is_itself() {
    for (wanted, expected) in [
        (4, ["=", "<=", ">="].as_slice()),
        (5, ["!=", "<", "<="].as_slice()),
        (3, ["!=", ">", ">="].as_slice()),
    ] {
        for relation in ["=", "!=", "<", "<=", ">", ">="] {
            let text = format!("slices{relation}{wanted}");
            assert_eq!(matches(&text), expected.contains(&relation), "4 of {text}");
        }
    }
}

#[test]
fn all_filters_must_match() {
    assert!(matches("bytes>1GiB, idle>5m ,state = hot"));
    assert!(!matches("bytes>1GiB,idle>5m,state=warm"));
    let both = "bytes>1GiB".parse::<Filters>().unwrap().and("state=warm".parse().unwrap());
    assert!(!both.matches(&facts(&summary())));
    assert!(Filters::default().is_empty() && Filters::default().matches(&facts(&summary())));
}

#[test]
fn what_is_not_known_matches_nothing() {
    let never = Summary {
        load_at_ms: None,
        load_took_ms: None,
        warm_at_ms: None,
        warm_took_ms: None,
        next_load_at_ms: None,
        ..summary()
    };
    let facts = Facts { fingerprint: None, ..facts(&never) };
    for name in ["load-at", "load-took", "warm-at", "warm-took", "next-load-at", "fingerprint"] {
        let (value, relations) = match name {
            "fingerprint" => ("ab".repeat(32), ["=", "!="].as_slice()),
            "load-took" | "warm-took" => ("1s".to_owned(), ["=", "!=", "<", "<=", ">", ">="].as_slice()),
            _ => ("1".to_owned(), ["=", "!=", "<", "<=", ">", ">="].as_slice()),
        };
        for relation in relations {
            let text = format!("{name}{relation}{value}");
            assert!(!text.parse::<Filters>().unwrap().matches(&facts), "{text}");
        }
    }
}

/// An operation runs over what its filters leave, so one that matches nothing has nothing to change.
#[test]
fn a_filter_that_matches_nothing_leaves_nothing() {
    let slices = (0..100u64).map(|number| {
        let mut blobs = BlobSizes::default();
        blobs.add(number * MIB);
        let mut slice = SliceMetrics::default();
        slice.cold_loaded(LoadFacts::of(blobs, 1), number, number);
        GenerationMetrics::of(&slice, GenerationState::Warm).summary(&MetricsLimits::default())
    });
    let slices: Vec<_> = slices.collect();
    let left = |text: &str| {
        let filters: Filters = text.parse().unwrap();
        slices.iter().filter(|slice| filters.matches(&facts(slice))).count()
    };
    assert_eq!(left("bytes>=90MiB"), 10);
    assert_eq!(left("bytes>=90MiB,state=hot"), 0);
    assert_eq!(left("bytes>1GiB"), 0);
    assert_eq!(left("bytes<1MiB,bytes>1MiB"), 0);
}

#[test]
fn what_is_no_filter_is_told_with_the_place_and_what_is_allowed() {
    let cases = [
        ("", "\"\" is no filter: at character 1, a filter is missing, such as bytes>1GiB"),
        (
            "bytes>1GiB,",
            "\"bytes>1GiB,\" is no filter: at character 12, a filter is missing, such as bytes>1GiB",
        ),
        (
            "bytes>1GiB, ,idle>1m",
            "\"bytes>1GiB, ,idle>1m\" is no filter: at character 13, a filter is missing, such as bytes>1GiB",
        ),
        ("bytes", "\"bytes\" is no filter: at character 6, bytes needs one of <= >= != = < >"),
        ("bytes~3", "there is no \"bytes~3\""),
        ("bytes =>3", "at character 8, \">3\" is no value of bytes"),
        ("idle>1m,invalid>true", "at character 16, invalid needs one of ="),
        ("invalid!=true", "at character 8, invalid needs one of ="),
        ("state<hot", "at character 6, state needs one of = !="),
        (
            "bytes>1GB",
            "at character 7, \"1GB\" is no value of bytes, which is a size such as 4096, 64KiB or 1.5GiB",
        ),
        (
            "idle>10",
            "at character 6, \"10\" is no value of idle, which is a time such as 250ms, 10m or 1h30m",
        ),
        ("state=hto", "which is one of cold, loading, warm, hot, no-data, failed, mixed"),
        ("durable=yes", "\"yes\" is no value of durable, which is true or false"),
        ("bytes>", "at character 7, \"\" is no value of bytes"),
        ("byts>1", "at character 1, there is no \"byts\"; there are bytes, blobs, slices, regions, load-at"),
        ("Bytes>1", "there is no \"Bytes\""),
        ("ünd>1, byts>2", "at character 1, there is no \"ünd\""),
        ("fingerprint=abc", "which is 64 digits of 0-9 a-f"),
    ];
    for (text, expected) in cases {
        let error = text.parse::<Filters>().unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn values_are_read_strictly() {
    for text in [
        "blobs>1,000",
        "blobs>-1",
        "blobs>+1",
        "blobs>1.0",
        "blobs>1e3",
        "blobs>18446744073709551616",
        "size-skew>nan",
        "size-skew>inf",
        "size-skew>.5",
        "size-skew>5.",
        "size-skew>1..2",
        "size-skew>-0.5",
        "idle>",
        "idle>m",
        "idle>1",
        "idle>1m1h",
        "idle>1m1m",
        "idle>1.5h",
        "idle>1 m",
        "idle>99999999999999999d",
        "load-at>2026-11-31",
        "load-at>2026-13-01",
        "load-at>2026-00-01",
        "load-at>2026-02-29",
        "load-at>2100-02-29",
        "load-at>1969-12-31",
        "load-at>2026-1-1",
        "load-at>2026-11-21T09:30:00",
        "load-at>2026-11-21T24:00:00Z",
        "load-at>2026-11-21T09:60:00Z",
        "load-at>2026-11-21T09:30Z",
        "load-at>2026-11-21T09:30:00.1Z",
        "load-at>2026-11-21T09:30:00+01:00",
        "load-at>2026-11-21-01",
        "invalid=TRUE",
        "invalid=1",
    ] {
        assert!(text.parse::<Filters>().is_err(), "{text}");
    }
}

#[test]
fn what_is_written_shortest_is_what_people_write() {
    for (text, written) in [
        ("bytes > 1024 MiB", "bytes>1GiB"),
        ("idle>=5400s", "idle>=90m"),
        ("idle<1h30m", "idle<90m"),
        ("idle!=0ms", "idle!=0s"),
        ("idle=1d12h", "idle=36h"),
        ("load-took<=1500ms", "load-took<=1500ms"),
        ("load-at>0", "load-at>1970-01-01"),
        ("load-at>1795219200000", "load-at>2026-11-21"),
        ("load-at>2024-02-29T23:59:59.007Z", "load-at>2024-02-29T23:59:59.007Z"),
        ("load-at>2000-03-01T00:00:01Z", "load-at>2000-03-01T00:00:01Z"),
        ("load-at>253402300800000", "load-at>253402300800000"),
        ("sample-rate=0.50", "sample-rate=0.5"),
        ("state=no-data, invalid=true", "state=no-data,invalid=true"),
    ] {
        assert_eq!(text.parse::<Filters>().unwrap().to_string(), written);
    }
}

/// Whoever reads the docs finds every name that there is, and no other.
#[test]
fn the_docs_have_the_same_names() {
    let docs = include_str!("../../../../docs/operations.md");
    let filters = docs.split("\n## ").find(|section| section.starts_with("Filters")).unwrap();
    let rows: Vec<_> = filters.lines().filter(|line| line.starts_with("| `")).collect();
    let expected: Vec<_> = FIELDS
        .iter()
        .map(|field| {
            let kind = format!("{:?}", field.kind).to_lowercase();
            format!("| `{}` | {kind} | {} |", field.name, field.says)
        })
        .collect();
    let found: Vec<_> = rows.iter().filter(|row| row.matches('|').count() == 4).copied().collect();
    assert_eq!(found, expected);
}

fn any_filter() -> impl Strategy<Value = String> {
    let size = (any::<u64>(), 0u32..64).prop_map(|(bits, shift)| (bits >> shift).to_string());
    let count = any::<u64>().prop_map(|count| count.to_string());
    let span = (any::<u64>(), 0u32..64).prop_map(|(bits, shift)| format!("{}ms", bits >> shift));
    let moment = (any::<u64>(), 0u32..64).prop_map(|(bits, shift)| (bits >> shift).to_string());
    let ratio = prop_oneof![0.0..2.0f64, 0.0..1e30f64].prop_map(|ratio| ratio.to_string());
    let truth = any::<bool>().prop_map(|truth| truth.to_string());
    let state = prop::sample::select(GenerationState::NAMES.map(|(name, _)| name.to_owned()).to_vec());
    let fingerprint = any::<[u8; 32]>().prop_map(|bytes| Fingerprint::from_bytes(bytes).to_string());
    let values = (size, count, span, moment, ratio, truth, state, fingerprint);
    (prop::sample::select((0..FIELDS.len()).collect::<Vec<_>>()), 0usize..6, values).prop_map(
        |(index, relation, (size, count, span, moment, ratio, truth, state, fingerprint))| {
            let field = &FIELDS[index];
            let relations = field.kind.relations();
            let value = match field.kind {
                Kind::Size => size,
                Kind::Count => count,
                Kind::Span => span,
                Kind::Moment => moment,
                Kind::Ratio => ratio,
                Kind::Truth => truth,
                Kind::State => state,
                Kind::Fingerprint => fingerprint,
            };
            format!("{}{}{value}", field.name, relations[relation % relations.len()].text())
        },
    )
}

proptest! {
    #[test]
    fn what_is_written_reads_back(texts in prop::collection::vec(any_filter(), 1..5)) {
        let filters: Filters = texts.join(",").parse().unwrap();
        let written = filters.to_string();
        prop_assert_eq!(written.parse::<Filters>(), Ok(filters), "{}", written);
    }

    #[test]
    fn any_text_is_read_or_refused(text in ".{0,40}", junk in "[a-z<>=!,: .0-9TZ-]{0,40}") {
        let _ = text.parse::<Filters>();
        let _ = junk.parse::<Filters>();
        let _ = format!("load-at={junk}").parse::<Filters>();
        let _ = format!("idle={text}").parse::<Filters>();
    }
}
