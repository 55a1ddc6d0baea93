//! Listening: gRPC and lanes come in by one port.
//!
//! A connection's first eight bytes tell which of the two it is. Whatever is neither, or says nothing for too long, is
//! closed; it costs one task and these bytes.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use pelton_nexus_proto::lane::{LaneAnswer, LaneError, LaneOpening};
use pelton_nexus_proto::{LimitExceeded, plain};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsStream;
use tonic::transport::server::Connected;

use crate::lanes::{LaneLimits, Lanes};
use crate::limits::NodeLimits;
use crate::places::{PeerPlace, Place, Places};
use crate::role::{Identity, Role};
use crate::stream::{Stream, write_to_stream};
use crate::tls::{self, ServerSecurity};

/// How a lane begins.
const LANE_MAGIC: &[u8; MAGIC_BYTES] = b"pelton L";
const MAGIC_BYTES: usize = 8;
/// How TLS begins: a record of the handshake.
const TLS_HANDSHAKE: u8 = 0x16;
/// How long a connection may take to say what it is.
const INTRODUCTION_WAIT_MAX: Duration = Duration::from_secs(10);
/// Connections that are introduced and not taken up yet.
const READY_CONNECTIONS_MAX: usize = 64;
/// How long a connection beyond the limits may take to hear so.
const REFUSAL_WAIT_MAX: Duration = Duration::from_secs(1);
/// How much of what a refused connection still sends is read before it is closed, in reads of 1 KiB.
const LINGER_READS_MAX: usize = 64;

/// A port that is listened on.
pub struct Door {
    listener: TcpListener,
    address: SocketAddr,
    security: ServerSecurity,
    lanes: Lanes,
    places: Places,
}

/// Who is at the other end of a connection.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Where from.
    pub address: SocketAddr,
    /// Whom the certificate names that it has shown. Nothing without TLS, or if it was not asked for one.
    pub identity: Option<Identity>,
    /// Whether the connection is TLS.
    pub tls: bool,
}

impl Caller {
    /// What it may do. Whoever reaches a plain port may do everything; under TLS the certificate says.
    pub fn role(&self) -> Option<Role> {
        if self.tls { self.identity.as_ref()?.role() } else { Some(Role::Admin) }
    }

    /// Who it is, for logs and for what each peer may have: the certificate's name, else the host's address.
    pub fn name(&self) -> String {
        match &self.identity {
            Some(identity) => identity.name().to_owned(),
            None => self.address.ip().to_string(),
        }
    }
}

/// A connection that speaks gRPC.
pub struct Connection {
    /// What was read to see what it is.
    begun: [u8; MAGIC_BYTES],
    /// How much of it was given on.
    given: usize,
    stream: Stream,
    caller: Caller,
    /// Given back when the connection is closed.
    _place: PeerPlace,
}

impl Door {
    /// Listens at `address`; port 0 has the system pick one.
    ///
    /// # Errors
    /// What the system says.
    pub async fn open(address: SocketAddr, security: ServerSecurity, limits: LaneLimits) -> io::Result<Door> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let lanes = Lanes::new(address.port(), security.is_tls(), limits);
        let places = NodeLimits::default().connections().clone();
        Ok(Door { listener, address, security, lanes, places })
    }

    /// Sets how many connections may be open at once, in all and of one peer, and where they are counted.
    pub fn limits(&mut self, limits: &NodeLimits) {
        self.places = limits.connections().clone();
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The lanes that can be opened here.
    pub fn lanes(&self) -> &Lanes {
        &self.lanes
    }

    /// Lets connections in until the receiver is dropped. For tonic's `serve_with_incoming`.
    pub fn incoming(self) -> Incoming {
        let (ready, connections) = mpsc::channel(READY_CONNECTIONS_MAX);
        tokio::spawn(self.let_in(ready));
        Incoming { connections }
    }

    async fn let_in(self, ready: mpsc::Sender<io::Result<Connection>>) {
        loop {
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                () = ready.closed() => return,
            };
            let (tcp, address) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // One that has gone again, or too many descriptors: both pass.
                    tracing::warn!(%error, "a connection could not be taken in");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let place = match self.places.take() {
                Ok(place) => place,
                // Whoever comes in such numbers gets no words for each.
                Err(None) => continue,
                Err(Some((refusal, error))) => {
                    tracing::warn!(peer = %address, %error, "a connection was refused");
                    let is_tls = self.security.is_tls();
                    tokio::spawn(async move {
                        let _refusal = refusal;
                        let refuse = refuse(tcp, is_tls, error);
                        let _ = tokio::time::timeout(REFUSAL_WAIT_MAX, refuse).await;
                    });
                    continue;
                }
            };
            let (security, lanes, ready) = (self.security.clone(), self.lanes.clone(), ready.clone());
            let places = self.places.clone();
            tokio::spawn(async move {
                let introduced = introduce(tcp, address, security, lanes, place, places);
                match tokio::time::timeout(INTRODUCTION_WAIT_MAX, introduced).await {
                    Ok(Ok(Some(connection))) => {
                        let _ = ready.send(Ok(connection)).await;
                    }
                    Ok(Ok(None)) => {}
                    // Somebody who only looked whether the port is open.
                    Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
                        tracing::debug!(peer = %address, "a connection was closed before it said anything");
                    }
                    Ok(Err(error)) => tracing::warn!(peer = %address, %error, "a connection was refused"),
                    Err(_) => tracing::debug!(peer = %address, "a connection said too little"),
                }
            });
        }
    }
}

/// Finds out what a connection is. A lane is handed to whoever waits for it.
async fn introduce(
    tcp: TcpStream,
    address: SocketAddr,
    security: ServerSecurity,
    lanes: Lanes,
    place: Place,
    places: Places,
) -> io::Result<Option<Connection>> {
    tcp.set_nodelay(true)?;
    let mut stream = match security {
        ServerSecurity::Plain => Stream::Plain(tcp),
        ServerSecurity::Tls(tls) => match tls.acceptor().await.accept(tcp).into_fallible().await {
            Ok(stream) => Stream::Tls(Box::new(stream.into())),
            Err((error, tcp)) => {
                linger(tcp).await;
                return Err(io::Error::new(io::ErrorKind::InvalidData, tls::explain(&error)));
            }
        },
    };
    let mut begun = [0; MAGIC_BYTES];
    let begin = stream.read_exact(&mut begun).await;
    begin.map_err(|error| io::Error::new(error.kind(), tls::explain(&error)))?;
    if begun == *LANE_MAGIC {
        // Lanes have a limit of their own, and their connections are not counted longer than this.
        return introduce_lane(begun, stream, &lanes).await.map(|()| None);
    }
    let (identity, tls) = match stream {
        Stream::Plain(tcp) if begun[0] == TLS_HANDSHAKE => {
            linger(tcp).await;
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it speaks TLS, and this port does not"));
        }
        Stream::Plain(_) => (None, false),
        Stream::Tls(ref tls) => (identity(tls), true),
    };
    let caller = Caller { address, identity, tls };
    match places.take_of_peer(&caller.name(), place) {
        Ok(place) => Ok(Some(Connection { begun, given: 0, stream, caller, _place: place })),
        Err(error) => {
            let _ = stream.write_all(&goodbye(&error.to_string())).await;
            let _ = stream.shutdown().await;
            read_out(&mut stream).await;
            Err(io::Error::new(io::ErrorKind::QuotaExceeded, error))
        }
    }
}

async fn introduce_lane(begun: [u8; MAGIC_BYTES], mut stream: Stream, lanes: &Lanes) -> io::Result<()> {
    let mut header = [0; LaneOpening::BYTES];
    header[..MAGIC_BYTES].copy_from_slice(&begun);
    stream.read_exact(&mut header[MAGIC_BYTES..]).await?;
    let taken = match LaneOpening::decode(&header) {
        Ok(opening) => lanes.take(&opening),
        Err(LaneError::Version { .. }) => Err(LaneAnswer::Version),
        Err(error) => return Err(io::Error::new(io::ErrorKind::InvalidData, error)),
    };
    let answer = taken.as_ref().err().copied().unwrap_or(LaneAnswer::Taken);
    stream.write_all(&answer.encode()).await?;
    stream.flush().await?;
    if let Ok(taker) = taken {
        taker.hand_over(stream);
    }
    Ok(())
}

fn identity(tls: &TlsStream<TcpStream>) -> Option<Identity> {
    let (_, session) = tls.get_ref();
    session.peer_certificates()?.first().map(Identity::of)
}

/// Closes a connection so that the other side can read what was said last.
///
/// What is closed with bytes unread is reset, and a reset overtakes the alert that tells why.
async fn linger(mut tcp: TcpStream) {
    let _ = tcp.shutdown().await;
    read_out(&mut tcp).await;
}

async fn read_out(stream: &mut (impl AsyncRead + Unpin)) {
    let mut unread = [0; 1024];
    for _ in 0..LINGER_READS_MAX {
        match stream.read(&mut unread).await {
            Ok(1..) => {}
            Ok(0) | Err(_) => return,
        }
    }
}

/// Says that there are too many connections, as far as that can be said without more work: not under TLS.
async fn refuse(mut tcp: TcpStream, is_tls: bool, error: LimitExceeded) {
    if !is_tls {
        let _ = tcp.write_all(&goodbye(&error.to_string())).await;
    }
    linger(tcp).await;
}

/// HTTP/2 for: nothing is done here, since you ask for too much. gRPC's clients make RESOURCE_EXHAUSTED of it.
fn goodbye(text: &str) -> Vec<u8> {
    let mut bytes = SETTINGS.to_vec();
    let len = u32::try_from(8 + text.len()).unwrap_or(u32::MAX);
    bytes.extend(&len.to_be_bytes()[1..]);
    bytes.extend([GOAWAY, 0, 0, 0, 0, 0]);
    bytes.extend(0_u32.to_be_bytes()); // No call was looked at.
    bytes.extend(ENHANCE_YOUR_CALM.to_be_bytes());
    bytes.extend(text.as_bytes());
    bytes
}

/// What a door has said in place of gRPC, if these bytes are that.
pub(crate) fn read_goodbye(bytes: &[u8]) -> Option<String> {
    let (settings, goaway) = bytes.split_at_checked(SETTINGS.len())?;
    // The frame's length, type, flags and stream; the last call; why; and words.
    let (head, text) = goaway.split_at_checked(9 + 4 + 4)?;
    let is_goodbye =
        settings == SETTINGS && head[3] == GOAWAY && head[13..] == ENHANCE_YOUR_CALM.to_be_bytes();
    let len = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
    let text = text.get(..len.checked_sub(8)?).filter(|_| is_goodbye)?;
    Some(plain(&String::from_utf8_lossy(text)))
}

/// Empty settings: how any HTTP/2 begins.
const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
const GOAWAY: u8 = 7;
const ENHANCE_YOUR_CALM: u32 = 11;

/// The gRPC connections of a door, as they come.
pub struct Incoming {
    connections: mpsc::Receiver<io::Result<Connection>>,
}

impl tokio_stream::Stream for Incoming {
    type Item = io::Result<Connection>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.connections.poll_recv(context)
    }
}

impl Connected for Connection {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        self.caller.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.given < MAGIC_BYTES {
            let rest = &self.begun[self.given..];
            let len = rest.len().min(buffer.remaining());
            buffer.put_slice(&rest[..len]);
            self.given += len;
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

write_to_stream!(Connection);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_goodbye_is_read_as_it_was_said_and_nothing_else_is_one() {
        let said = goodbye("connections_max: 3 is more than the 2 that are allowed");
        let heard = read_goodbye(&said).unwrap();
        assert_eq!(heard, "connections_max: 3 is more than the 2 that are allowed");
        assert_eq!(read_goodbye(&goodbye("a\nb")).unwrap(), "a\\nb");
        for len in 0..said.len() {
            assert_eq!(read_goodbye(&said[..len]), None, "{len}");
        }
        for at in [3, 9 + 3, 9 + 16] {
            let mut other = said.clone();
            other[at] ^= 1;
            assert_eq!(read_goodbye(&other), None, "{at}");
        }
        // A length that has no room for what is before the words.
        let mut short = said;
        short[9..12].copy_from_slice(&[0, 0, 7]);
        assert_eq!(read_goodbye(&short), None);
    }
}
