//! Who gets in by TLS, and what both sides say where somebody does not.

mod support;

use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use pelton_nexus::{
    Caller, ClientSecurity, ClientTls, Dial, DialError, Door, LaneLimits, Role, ServerSecurity, ServerTls,
};
use support::certificates::{Authority, Pair};
use support::log::Log;
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tonic::transport::Server;
use tonic::transport::server::Connected;

/// A port where gRPC is spoken, and who has come.
struct Port {
    address: SocketAddr,
    callers: mpsc::UnboundedReceiver<Caller>,
}

async fn open(security: impl Into<ServerSecurity>) -> Port {
    let address = "127.0.0.1:0".parse().unwrap();
    let door = Door::open(address, security.into(), LaneLimits::default()).await.unwrap();
    let address = door.address();
    let (came, callers) = mpsc::unbounded_channel();
    let incoming = door.incoming().map(move |connection| {
        let _ = came.send(connection.as_ref().unwrap().connect_info());
        connection
    });
    tokio::spawn(Server::builder().add_routes(Default::default()).serve_with_incoming(incoming));
    Port { address, callers }
}

async fn dial(port: &Port, host: &str, security: impl Into<ClientSecurity>) -> Result<(), DialError> {
    let dial = Dial::new(&format!("{host}:{}", port.address.port()), security.into()).unwrap();
    dial.channel().await.map(|_| ())
}

/// What both sides say of a connection that does not come about.
async fn refusal(
    server: impl Into<ServerSecurity>,
    host: &str,
    client: impl Into<ClientSecurity>,
) -> (String, Vec<String>) {
    let log = Log::listen();
    let mut port = open(server).await;
    let said = match dial(&port, host, client).await {
        Err(DialError::Tls { problem, .. }) => problem,
        other => panic!("{other:?}"),
    };
    // The client may know first: the server has said its word when it no longer holds the connection.
    let logged = tokio::time::timeout(Duration::from_secs(20), async {
        while log.lines().is_empty() {
            tokio::task::yield_now().await;
        }
        log.lines()
    });
    let logged = logged.await.expect("the server says why");
    assert!(port.callers.try_recv().is_err());
    for text in logged.iter().chain([&said]) {
        assert!(!text.contains("PRIVATE"), "{text}");
    }
    (said, logged)
}

#[track_caller]
fn assert_says((client, server): (String, Vec<String>), client_says: &str, server_says: &str) {
    assert_eq!(client, client_says);
    assert!(server.iter().any(|line| line.contains(server_says)), "{server:#?} lacks {server_says:?}");
}

#[tokio::test]
async fn who_is_trusted_gets_in_with_the_role_of_the_certificate() {
    let ca = Authority::new("ours");
    let mut port = open(ca.server(&ca.sign("server", &["localhost", "127.0.0.1"], &[]))).await;
    for (name, role) in [("reader", Role::Reader), ("loader", Role::Loader), ("admin", Role::Admin)] {
        for host in ["localhost", "127.0.0.1"] {
            dial(&port, host, ca.client(Some(&ca.with_role(name)))).await.unwrap();
            let caller = port.callers.recv().await.unwrap();
            assert_eq!(caller.role(), Some(role));
            assert_eq!(caller.name(), format!("spiffe://test/{name}/pelton/role/{name}"));
        }
    }
    let nobody = ca.sign("nobody", &["somewhere.test"], &["spiffe://test/pelton/role/owner"]);
    dial(&port, "localhost", ca.client(Some(&nobody))).await.unwrap();
    let caller = port.callers.recv().await.unwrap();
    assert_eq!((caller.role(), caller.name().as_str()), (None, "spiffe://test/pelton/role/owner"));
}

#[tokio::test]
async fn without_a_ca_everybody_gets_in_and_nobody_has_a_role() {
    let ca = Authority::new("ours");
    let pair = ca.with_role("admin");
    let mut port = open(ServerTls::from_files(&pair.certificate, &pair.key, None).unwrap()).await;
    for identity in [None, Some(&pair)] {
        dial(&port, "localhost", ca.client(identity)).await.unwrap();
        let caller = port.callers.recv().await.unwrap();
        assert_eq!((caller.role(), caller.name().as_str()), (None, "127.0.0.1"));
    }
}

#[tokio::test]
async fn on_a_plain_port_everybody_may_do_everything() {
    let mut port = open(ServerSecurity::Plain).await;
    dial(&port, "127.0.0.1", ClientSecurity::Plain).await.unwrap();
    assert_eq!(port.callers.recv().await.unwrap().role(), Some(Role::Admin));
}

#[tokio::test]
async fn no_certificate_is_refused() {
    let ca = Authority::new("ours");
    let said = refusal(ca.server(&ca.with_role("reader")), "localhost", ca.client(None)).await;
    assert_says(
        said,
        "it wants a certificate, and none was shown",
        "it shows no certificate, and one is needed",
    );
}

#[tokio::test]
async fn a_client_of_another_ca_is_refused() {
    // The second has the name of ours, but not its key.
    for name in ["theirs", "ours"] {
        let (ours, theirs) = (Authority::new("ours"), Authority::new(name));
        let pair = theirs.with_role("admin");
        let client = ClientTls::from_files(Some(pair.paths()), &ours.file()).unwrap();
        let said = refusal(ours.server(&ours.with_role("reader")), "localhost", client).await;
        assert_says(
            said,
            "it refuses the certificate from here: it is not from a CA that it trusts",
            "its certificate is not from a CA that is trusted here",
        );
    }
}

#[tokio::test]
async fn a_server_of_another_ca_is_refused() {
    for name in ["theirs", "ours"] {
        let (ours, theirs) = (Authority::new("ours"), Authority::new(name));
        let client = ours.client(Some(&ours.with_role("admin")));
        let said = refusal(theirs.server(&theirs.with_role("reader")), "localhost", client).await;
        assert_says(
            said,
            "its certificate is not from a CA that is trusted here",
            "it refuses the certificate from here: it is not from a CA that it trusts",
        );
    }
}

#[tokio::test]
async fn a_foreign_name_is_refused() {
    let ca = Authority::new("ours");
    let server = ca.server(&ca.sign("server", &["other.test", "10.0.0.7"], &[]));
    let said = refusal(server, "localhost", ca.client(Some(&ca.with_role("admin")))).await;
    assert!(said.0.starts_with("its certificate is for ") && said.0.contains("other.test"), "{}", said.0);
    assert!(said.0.ends_with(", not for localhost"), "{}", said.0);
    assert!(said.1.iter().any(|line| line.contains("it refuses the certificate from here")), "{:#?}", said.1);
}

#[tokio::test]
async fn expired_certificates_are_refused_on_both_sides() {
    let ca = Authority::new("ours");
    let (expired, good) = (ca.sign_expired("old", &["localhost"]), ca.with_role("admin"));
    let refused = "it refuses the certificate from here: it is expired or not valid yet";
    let said = refusal(ca.server(&expired), "localhost", ca.client(Some(&good))).await;
    assert_says(said, "its certificate has expired", refused);
    let said = refusal(ca.server(&good), "localhost", ca.client(Some(&expired))).await;
    assert_says(said, refused, "its certificate has expired");
}

#[tokio::test]
async fn a_plain_client_on_a_tls_port_and_the_reverse_are_told_apart() {
    let ca = Authority::new("ours");
    let said = refusal(ca.server(&ca.with_role("reader")), "localhost", ClientSecurity::Plain).await;
    let plain = "what it says is not TLS; perhaps it speaks plain";
    assert_says(said, "it speaks TLS, and was spoken to without", plain);
    let client = ca.client(Some(&ca.with_role("reader")));
    let said = refusal(ServerSecurity::Plain, "localhost", client).await;
    assert_says(
        said,
        "it closed the connection during the handshake; perhaps it does not speak TLS",
        "it speaks TLS, and this port does not",
    );
}

#[test]
fn what_is_wrong_with_a_file_is_told_without_what_stands_in_it() {
    let ca = Authority::new("ours");
    let (one, other) = (ca.sign("one", &["localhost"], &[]), ca.sign("other", &["localhost"], &[]));
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        path
    };
    let pem = fs::read_to_string(&one.key).unwrap();
    let secret = pem.lines().nth(1).unwrap();
    let cut = file("cut", &pem.replace("-----END", "-----E"));
    let odd = file("odd", &format!("-----BEGIN PRIVATE KEY {secret}\n{secret}\n"));
    let locked = file("locked", &pem.replace("PRIVATE", "ENCRYPTED PRIVATE"));
    let empty = file("empty", "");
    let missing = folder.path().join("missing");
    let (crt, key) = one.paths();
    for (certificate, key, ca, says) in [
        (crt, other.key.as_path(), None, "does not fit the certificate"),
        (crt, &missing, None, "missing: can't be read: No such file"),
        (&missing, key, None, "missing: can't be read: No such file"),
        (crt, &cut, None, "cut: has no private key in PEM"),
        (crt, &odd, None, "odd: has no private key in PEM"),
        (crt, &locked, None, "locked: the key is encrypted"),
        (crt, crt, None, "one.crt: has no private key in PEM"),
        (&empty, key, None, "empty: has no certificate in PEM"),
        (key, key, None, "one.key: has no certificate in PEM"),
        (crt, key, Some(empty.as_path()), "empty: has no certificate in PEM"),
        (crt, key, Some(missing.as_path()), "missing: can't be read: No such file"),
    ] {
        let error = told(&ServerTls::from_files(certificate, key, ca).expect_err(says));
        assert!(error.contains(says), "{error:?} lacks {says:?}");
        assert!(!error.contains(secret), "{error}");
        assert_eq!(error.matches("No such file").count(), usize::from(says.contains("No such")), "{error}");
        let client = ca.unwrap_or(crt);
        let error = told(&ClientTls::from_files(Some((certificate, key)), client).expect_err(says));
        assert!(error.contains(says), "{error:?} lacks {says:?}");
    }
    let tls = ServerTls::from_files(crt, key, None).unwrap();
    assert!(!format!("{tls:?}").contains(secret));
}

/// An error with its causes.
fn told(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// Goal: certificates are renewed without a restart, and a bad renewal harms nobody. Method: the server's files are
/// replaced between connections, with a pair of another CA, with one that does not fit, and back.
#[tokio::test]
async fn certificates_are_read_again_when_they_change() {
    let log = Log::listen();
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let pair = ours.with_role("reader");
    let tls = ours.server(&pair).look_every(Duration::ZERO);
    let port = open(tls).await;
    let client = || ours.client(Some(&ours.sign("client", &["localhost"], &[])));
    dial(&port, "localhost", client()).await.unwrap();

    // Half of a renewal: the old pair goes on.
    let next = ours.sign("next", &["localhost"], &[]);
    fs::rename(&next.key, &pair.key).unwrap();
    dial(&port, "localhost", client()).await.unwrap();
    log.assert_has("new certificates can't be used; the ones from before are kept error=the key in");
    let told = log.lines().len();
    dial(&port, "localhost", client()).await.unwrap();
    assert_eq!(log.lines().len(), told, "it is said once");

    // The other half.
    fs::rename(&next.certificate, &pair.certificate).unwrap();
    dial(&port, "localhost", client()).await.unwrap();
    log.assert_has("certificates were read again");

    theirs.sign("next", &["localhost"], &[]).replaces(&pair);
    match dial(&port, "localhost", client()).await {
        Err(DialError::Tls { problem, .. }) => assert!(problem.contains("not from a CA"), "{problem}"),
        other => panic!("{other:?}"),
    }
    // A file that is gone for a moment.
    fs::remove_file(&pair.certificate).unwrap();
    ours.sign("next", &["localhost"], &[]).replaces(&pair);
    dial(&port, "localhost", client()).await.unwrap();
}

/// As above, for who connects: a client's certificate that is renewed is shown at the next connection.
#[tokio::test]
async fn a_client_shows_the_certificate_that_its_files_have_now() {
    let ca = Authority::new("ours");
    let mut port = open(ca.server(&ca.sign("server", &["localhost"], &[]))).await;
    let pair: Pair = ca.with_role("reader");
    let client = ca.client(Some(&pair)).look_every(Duration::ZERO);
    dial(&port, "localhost", client.clone()).await.unwrap();
    assert_eq!(port.callers.recv().await.unwrap().role(), Some(Role::Reader));
    ca.with_role("admin").replaces(&pair);
    dial(&port, "localhost", client).await.unwrap();
    assert_eq!(port.callers.recv().await.unwrap().role(), Some(Role::Admin));
}
