//! What a subscriber of `tracing` sees of a cache. A process of its own: spans come from the cache's threads, so the
//! subscriber is the process's.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};

use pelton::*;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Level, Metadata, Subscriber};

type Fields = BTreeMap<String, String>;

/// Keeps the spans with all their fields, and the lines.
#[derive(Default)]
struct Kept {
    next: AtomicU64,
    open: Mutex<HashMap<u64, (String, Fields)>>,
    spans: Mutex<Vec<(String, Fields)>>,
    lines: Mutex<Vec<(Level, Fields)>>,
}

struct FieldsOf<'f>(&'f mut Fields);

impl Visit for FieldsOf<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0.insert(field.name().to_owned(), format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name().to_owned(), value.to_owned());
    }
}

/// The subscriber, which the process keeps.
struct Handle(&'static Kept);

impl Subscriber for Handle {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("pelton")
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        let number = self.0.next.fetch_add(1, Ordering::Relaxed) + 1;
        let mut fields = Fields::new();
        span.record(&mut FieldsOf(&mut fields));
        self.0.open.lock().unwrap().insert(number, (span.metadata().name().to_owned(), fields));
        Id::from_u64(number)
    }

    fn record(&self, span: &Id, values: &Record<'_>) {
        if let Some((_, fields)) = self.0.open.lock().unwrap().get_mut(&span.into_u64()) {
            values.record(&mut FieldsOf(fields));
        }
    }

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        let mut fields = Fields::new();
        event.record(&mut FieldsOf(&mut fields));
        self.0.lines.lock().unwrap().push((*event.metadata().level(), fields));
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}

    fn try_close(&self, span: Id) -> bool {
        // No span of ours is cloned.
        let ended = self.0.open.lock().unwrap().remove(&span.into_u64());
        self.0.spans.lock().unwrap().extend(ended);
        true
    }
}

fn kept() -> &'static Kept {
    static KEPT: OnceLock<Kept> = OnceLock::new();
    static INSTALLED: OnceLock<()> = OnceLock::new();
    let kept = KEPT.get_or_init(Kept::default);
    INSTALLED.get_or_init(|| tracing::subscriber::set_global_default(Handle(kept)).unwrap());
    kept
}

impl Kept {
    /// The spans of this key, by name, with bytes and outcome.
    fn spans_of(&self, key: &Key) -> Vec<(String, String, String)> {
        let spans = self.spans.lock().unwrap();
        let of_key = spans.iter().filter(|(_, fields)| fields.get("key") == Some(&key.to_string()));
        let field = |fields: &Fields, name: &str| fields.get(name).cloned().unwrap_or_default();
        of_key
            .map(|(name, fields)| (name.clone(), field(fields, "bytes"), field(fields, "outcome")))
            .collect()
    }

    fn lines_of(&self, key: &Key) -> Vec<(Level, Fields)> {
        let lines = self.lines.lock().unwrap();
        lines.iter().filter(|(_, fields)| fields.get("key") == Some(&key.to_string())).cloned().collect()
    }
}

const BLOBS: u64 = 4;
const BLOB_BYTES: u64 = 1 << 20;

fn load(cache: &Cache, key: &Key) {
    let mut plan = LoadPlan::new(Fingerprint::from_bytes([1; 32]));
    plan.durability = Durability::Wait;
    let writer = cache.snap(key).open_for_writes(plan).unwrap();
    for _ in 0..BLOBS {
        let mut parcel = ParcelBuilder::default();
        parcel.push(&vec![7; BLOB_BYTES as usize]).unwrap();
        writer.queue_parcel(parcel.finish()).unwrap();
    }
    writer.wait_for_writes().unwrap().close_for_writes().unwrap();
}

fn cache(folder: &Path) -> Cache {
    let builder = Cache::builder().spindle(folder.join("spindle"), 1 << 30).memory(256 << 20);
    builder.scan_threads(2).pin(false).residence(Residence::Image).open().unwrap()
}

fn scan(cache: &Cache, key: &Key) -> Result<u64, ScanError> {
    let count = |blobs: &mut Blobs<'_>, n: &mut u64| {
        while blobs.next()?.is_some() {
            *n += 1;
        }
        Ok(())
    };
    cache.lease(key, Want::Latest, None).unwrap().scan(count, |a, b| a + b)
}

#[test]
fn a_load_a_warming_scans_and_an_evict_are_spans_with_key_bytes_and_outcome() {
    let kept = kept();
    let folder = tempfile::tempdir().unwrap();
    let cache = cache(folder.path());
    let key: Key = "test/traces@1#0".parse().unwrap();
    load(&cache, &key);
    assert_eq!(scan(&cache, &key).unwrap(), BLOBS);
    let file_bytes = cache.snap(&key).status().file_bytes.to_string();
    assert!(cache.snap(&key).evict());
    assert_eq!(scan(&cache, &key).unwrap(), BLOBS);
    assert!(cache.snap(&key).flush(None).unwrap());
    assert!(!cache.snap(&key).evict(), "nothing is left");
    drop(cache.snap(&key).open_for_writes(LoadPlan::new(Fingerprint::from_bytes([2; 32]))).unwrap());
    cache.close(None).unwrap(); // The threads that had them have ended.
    let mut spans = kept.spans_of(&key);
    spans.sort();
    let span =
        |name: &str, bytes: &str, outcome: &str| (name.to_owned(), bytes.to_owned(), outcome.to_owned());
    let blob_bytes = (BLOBS * BLOB_BYTES).to_string();
    let mut expected = vec![
        span("load", &blob_bytes, "sealed"),
        span("commit", &file_bytes, "durable"),
        span("scan", &file_bytes, "scanned"),
        span("evict", &file_bytes, "evicted"),
        span("warm", &file_bytes, "warmed"),
        span("scan", &file_bytes, "scanned"),
        span("evict", "0", "kept"),
        span("load", "", "cancelled"),
    ];
    expected.sort();
    assert_eq!(spans, expected);
    assert_eq!(kept.lines_of(&key), [], "nothing went wrong");
}

#[test]
fn what_fails_is_a_warning_with_its_reason() {
    let kept = kept();
    let folder = tempfile::tempdir().unwrap();
    let cache = cache(folder.path());
    let key: Key = "test/traces@2#0".parse().unwrap();
    load(&cache, &key);
    let file = region_file(folder.path());
    assert!(cache.snap(&key).evict());
    let mut open = std::fs::OpenOptions::new().write(true).open(&file).unwrap();
    open.seek(SeekFrom::End(-100)).unwrap();
    open.write_all(b"damage").unwrap();
    open.sync_all().unwrap();
    assert!(matches!(cache.lease(&key, Want::Latest, None), Err(LeaseError::Warm { .. })));
    cache.close(None).unwrap();
    let lines = kept.lines_of(&key);
    assert_eq!(lines.len(), 1, "{lines:?}");
    let (level, fields) = &lines[0];
    assert_eq!(*level, Level::WARN);
    assert!(fields["why"].contains("damaged"), "{fields:?}");
    let spans = kept.spans_of(&key);
    assert!(spans.contains(&("warm".to_owned(), String::new(), "failed".to_owned())), "{spans:?}");
}

fn region_file(folder: &Path) -> PathBuf {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => folders.push(path),
                false if path.extension().is_some_and(|extension| extension == "region") => found.push(path),
                false => {}
            }
        }
    }
    found.sort();
    found.remove(0)
}
