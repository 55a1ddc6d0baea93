//! A node that is started, asked, monitored and ended, with the real binary on both sides.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, ChildStdout, Stdio};
use std::time::Duration;

use pelton::nexus::node::{AskError, NodeClient, RemoteOptions};
use pelton::nexus::{ClientSecurity, Dial};
use pelton::{KeyPattern, Operation, Selection};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::{Run, Story};

/// A node that was started in a story's folder.
pub(crate) struct Node {
    child: Child,
    /// Kept open: a node that prints must not find it closed.
    _stdout: BufReader<ChildStdout>,
    pub(crate) address: String,
    page: String,
}

impl Story {
    /// Starts a node on ports that the system picks, and reads what it says of them.
    pub(crate) fn serve(&self, options: &[&str]) -> Node {
        let fixed = ["serve", "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0"];
        let mut command = self.command(&[&fixed, options].concat());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = |begin: &str| {
            let mut line = String::new();
            stdout.read_line(&mut line).unwrap();
            line.trim_end().strip_prefix(begin).unwrap_or_else(|| panic!("{line:?}")).to_owned()
        };
        let address = line("listening on ");
        let page = line("metrics on http://").replace("/metrics", "");
        Node { child, _stdout: stdout, address, page }
    }

    /// A CA in `ca.crt`, and a certificate with its key for each of these, which may be no role.
    pub(crate) fn certificates(&self, roles: &[&str]) {
        let mut ca = CertificateParams::default();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca_key = KeyPair::generate().unwrap();
        self.write("ca.crt", ca.self_signed(&ca_key).unwrap().pem());
        let issuer = Issuer::new(ca, ca_key);
        for role in roles {
            let mut params =
                CertificateParams::new(["127.0.0.1".to_owned(), "localhost".to_owned()]).unwrap();
            let uri = format!("spiffe://example.org/{role}-1/pelton/role/{role}");
            params.subject_alt_names.push(SanType::URI(uri.try_into().unwrap()));
            let key = KeyPair::generate().unwrap();
            self.write(&format!("{role}.crt"), params.signed_by(&key, &issuer).unwrap().pem());
            self.write(&format!("{role}.key"), key.serialize_pem());
        }
    }

    /// Three slices, each with its own size.
    fn filled() -> Story {
        let story = Story::new();
        for (key, bytes) in [("shop/a@1", 100_000), ("shop/a@2", 200_000), ("shop/b@1", 900_000)] {
            story.write("in", [vec![b'x'; bytes], b"\n".to_vec()].concat());
            story.run(&["load", key, "--from", "in", "--format", "lines", "--regions", "2"]).ok();
        }
        story
    }
}

impl Node {
    /// What a page answers: its status, and the text.
    fn get(&self, path: &str) -> (u16, String) {
        self.request(&format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n"))
    }

    fn request(&self, request: &str) -> (u16, String) {
        let mut tcp = TcpStream::connect(&self.page).unwrap();
        tcp.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        tcp.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    fn wait_until_ready(&self) {
        while self.get("/ready").0 != 200 {
            std::thread::yield_now();
        }
    }

    fn signal(&self) {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
    }

    /// What it says on standard error until it ends, and its exit code.
    fn end(mut self) -> (Option<i32>, String) {
        let mut stderr = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        (self.child.wait().unwrap().code(), stderr)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The options that show a certificate of [`Story::certificates`].
pub(crate) fn secured(role: &str) -> [String; 6] {
    ["--tls-ca", "ca.crt", "--tls-cert", &format!("{role}.crt"), "--tls-key", &format!("{role}.key")]
        .map(str::to_owned)
}

/// Lines of JSON without what is another each time.
fn values(run: Run) -> Vec<Value> {
    assert_eq!((run.code, run.stderr.as_str()), (Some(0), ""), "{}", run.args);
    let read = |line: &str| {
        let mut value: Value = serde_json::from_str(line).unwrap();
        for name in ["seconds", "idle_seconds"] {
            value.as_object_mut().unwrap().remove(name);
        }
        value
    };
    run.stdout.lines().map(read).collect()
}

/// Goal: `--node` changes where it is done, not what is said. Method: the same commands on an opened cache, and on a node
/// over the same folder.
#[test]
fn a_node_is_asked_as_a_cache_is() {
    let story = Story::filled();
    let looks: [&[&str]; 6] = [
        &["ls", "--json"],
        &["ls", "shop/a", "--generations", "--json", "--where", "bytes>150KiB"],
        &["verify", "--json"],
        &["evict", "--dry-run", "--json"],
        &["warm", "--dry-run", "--json"],
        &["erase", "shop/b", "--dry-run", "--json"],
    ];
    let here: Vec<_> = looks.iter().map(|args| values(story.run(args))).collect();
    let tables: [&[&str]; 3] =
        [&["ls", "--where", "durable=true", "shop"], &["ls", "--leases"], &["flush", "none"]];
    let is_age = |word: &str| word.ends_with(['s', 'm']) && word[..word.len() - 1].parse::<u64>().is_ok();
    let said = tables.map(|args| story.run(args).stdout);
    let refused = story.run(&["flush", "shop"]);

    let node = story.serve(&["--insecure"]);
    let there = |args: &[&str]| story.run(&[args, &["--node", &node.address, "--insecure"]].concat());
    for (args, here) in looks.iter().zip(here) {
        assert_eq!(values(there(args)), here, "{args:?}");
    }
    for (args, said) in tables.iter().zip(said) {
        let words = |text: &str| {
            let words = text.split_whitespace().filter(|word| !is_age(word));
            words.map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(words(&there(args).stdout), words(&said), "{args:?}");
    }
    let refused_there = there(&["flush", "shop"]);
    assert_eq!((refused_there.code, &refused_there.stderr), (Some(1), &refused.stderr));
    assert!(refused.stderr.contains("give --yes to do so"), "{}", refused.stderr);

    let flushed = values(there(&["flush", "shop/a", "--json"]));
    assert_eq!(flushed.len(), 2);
    assert!(flushed.iter().all(|one| one["outcome"] == "done"), "{flushed:?}");
    node.signal();
    let (code, stderr) = node.end();
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stderr.contains("pelton::audit: flush who=127.0.0.1"), "{stderr}");
    assert!(stderr.ends_with("pelton: ended; 0 calls cut off, 0 leases left\n"), "{stderr}");
    let left = values(story.run(&["ls", "--json"]));
    assert!(left.iter().any(|one| one["key"] == "shop/b@1#0" && one["durable"] == true), "{left:?}");
}

#[test]
fn a_page_tells_figures_and_whether_it_serves() {
    let story = Story::filled();
    let node = story.serve(&["--insecure"]);
    node.wait_until_ready();
    assert_eq!(node.get("/ready"), (200, "ready\n".to_owned()));
    assert_eq!(node.get("/live?x").0, 200);
    assert_eq!(node.get("/other").0, 404);
    assert_eq!(node.request("POST /metrics HTTP/1.1\r\n\r\n").0, 405);
    assert_eq!(node.request("HEAD /ready HTTP/1.1\r\n\r\n"), (200, String::new()));
    let warm = ["warm", "shop/b", "--node", &node.address, "--insecure", "--json"];
    assert_eq!(values(story.run(&warm))[0]["outcome"], "done");
    let (status, page) = node.get("/metrics");
    assert_eq!(status, 200);
    for line in ["pelton_warmings_total{outcome=\"done\"} 1", "# TYPE pelton_images_bytes gauge"] {
        assert!(page.lines().any(|its| its == line), "{line:?} is not in:\n{page}");
    }
    // Waiting times are histograms: counts that grow from bucket to bucket, the last one being all.
    for name in ["lease", "load", "commit", "warm"].map(|what| format!("pelton_{what}_wait_seconds")) {
        assert!(page.lines().any(|its| its == format!("# TYPE {name} histogram")), "{name} in:\n{page}");
        assert!(!page.contains("quantile="), "{page}");
        let of = |begin: &str| -> Vec<f64> {
            let lines = page.lines().filter(|line| line.starts_with(begin));
            lines.map(|line| line.rsplit(' ').next().unwrap().parse().unwrap()).collect()
        };
        let (counts, count) = (of(&format!("{name}_bucket{{le=")), of(&format!("{name}_count ")));
        assert!(counts.len() == 23 && counts.is_sorted(), "{name}: {counts:?}");
        assert_eq!(counts.last(), count.first(), "{name}");
        assert_eq!(count[0], f64::from(name.contains("warm")), "one slice was warmed: {name}");
    }
    let used = page.lines().find(|line| line.starts_with("pelton_spindle_used_bytes{spindle=\"0\"} "));
    let used = used.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
    assert!(used.is_some_and(|used| used >= 1_200_000.0), "{page}");
}

/// Goal: SIGTERM lets what is under way go on and takes nothing new, and a second one ends it. Method: a verify at a rate
/// that would take days, seen to run by what it says of itself.
#[test]
fn sigterm_drains_and_a_second_one_cuts() {
    let story = Story::filled();
    let node = story.serve(&["--insecure", "--drain-wait", "3600"]);
    node.wait_until_ready();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let dial = Dial::new(&node.address, ClientSecurity::Plain).unwrap();
    let client = runtime.block_on(NodeClient::connect(&dial)).unwrap();
    let (seen, progress) = std::sync::mpsc::channel();
    let verifying = runtime.spawn(async move {
        let mut options = RemoteOptions::default();
        options.rate = Some(1);
        let selection = Selection::new(KeyPattern::ALL);
        client.operate(&selection, Operation::Verify, &options, |told| _ = seen.send(told)).await
    });
    progress.recv_timeout(Duration::from_secs(60)).unwrap();

    node.signal();
    while node.get("/ready").0 != 503 {
        std::thread::yield_now();
    }
    assert_eq!(node.get("/live").0, 200);
    let refused = story.run(&["ls", "--node", &node.address, "--insecure"]);
    refused.fails_saying(&["does not serve: the node drains and takes nothing new"]);
    assert!(!verifying.is_finished());

    node.signal();
    let (code, stderr) = node.end();
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stderr.ends_with("pelton: ended; 1 call cut off, 0 leases left\n"), "{stderr}");
    let cut = runtime.block_on(verifying).unwrap();
    assert!(matches!(cut, Err(AskError::Broken { .. })), "{cut:?}");
}

#[test]
fn certificates_decide_who_may_do_what() {
    let story = Story::filled();
    story.certificates(&["reader", "admin"]);
    let options = secured("reader");
    let node = story.serve(&options.each_ref().map(String::as_str));
    let ask = |args: &[&str], options: &[String]| {
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        story.run(&[args, &["--node", &node.address], &options].concat())
    };
    assert_eq!(values(ask(&["ls", "--json"], &secured("reader"))).len(), 3);
    let refused = ask(&["erase", "shop/a"], &secured("reader"));
    refused.fails_saying(&["erase needs the role admin", "spiffe://example.org/reader-1/pelton/role/reader"]);
    assert_eq!(values(ask(&["erase", "shop/a", "--json"], &secured("admin"))).len(), 2);
    let nobody = ["--tls-ca".to_owned(), "ca.crt".to_owned()];
    ask(&["ls"], &nobody).fails_saying(&["it wants a certificate, and none was shown"]);
    ask(&["ls"], &["--insecure".to_owned()]).fails_saying(&["it speaks TLS, and was spoken to without"]);
    node.signal();
    let (_, stderr) = node.end();
    assert!(stderr.contains("erase who=spiffe://example.org/admin-1/pelton/role/admin"), "{stderr}");
    let secret = fs::read_to_string(story.path("reader.key")).unwrap();
    assert!(!stderr.contains(secret.lines().nth(1).unwrap()), "{stderr}");
}

#[test]
fn a_node_needs_certificates_or_a_clear_word_that_it_has_none() {
    let story = Story::new();
    let listen = ["serve", "--listen", "127.0.0.1:0"];
    story.run(&listen).refuses_usage(&["give --tls-cert, --tls-key and --tls-ca, or say --insecure"]);
    story
        .run(&[&listen[..], &["--insecure", "--tls-ca", "x"]].concat())
        .refuses_usage(&["cannot be used with"]);
    story.run(&["ls", "--node", "127.0.0.1:1"]).refuses_usage(&["give --tls-ca"]);
    story.run(&["ls", "--insecure"]).refuses_usage(&["go with --node"]);
    story
        .run(&["ls", "--node", "127.0.0.1:1", "--insecure", "--spindle", "x"])
        .refuses_usage(&["cannot be used with"]);
    story.run(&["ls", "--node", "nowhere", "--insecure"]).fails_saying(&["is no address: write HOST:PORT"]);
    story
        .run(&[&listen[..], &["--tls-cert", "a", "--tls-key", "b", "--tls-ca", "c"]].concat())
        .fails_saying(&["a: can't be read"]);
    assert!(!story.path("pelton-data").exists(), "nothing was made");
}

#[test]
fn a_node_keeps_to_the_limits_of_its_file_and_of_its_options() {
    let story = Story::filled();
    story.write("pelton.toml", "[node.limits]\nmessage_bytes_max = \"128KiB\"\nframe_bytes_max = \"8KiB\"\n");
    let options = ["--insecure", "--config", "pelton.toml", "--limit", "chunk_bytes_max=8KiB"];
    // 14 bytes for each filter.
    let filters: Vec<&str> = (0..12_000).flat_map(|_| ["--where", "bytes>1"]).collect();
    for (option, says) in [
        (
            "frame_bytes_max=8KiB",
            "message_bytes_max: a message has more than the 131072 bytes that are allowed",
        ),
        (
            "message_bytes_max=64KiB",
            "message_bytes_max: a message has more than the 65536 bytes that are allowed",
        ),
    ] {
        let node = story.serve(&[&options[..], &["--limit", option]].concat());
        let asked = ["ls", "--node", &node.address, "--insecure"];
        assert_eq!(values(story.run(&[&asked[..], &["--json"]].concat())).len(), 3);
        story.run(&[&asked[..], &filters].concat()).fails_saying(&[says]);
    }
}
