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
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsStream;
use tonic::transport::server::Connected;

use crate::lanes::{LaneLimits, Lanes};
use crate::stream::Stream;
use crate::tls::ServerSecurity;

/// How a lane begins.
const LANE_MAGIC: &[u8; MAGIC_BYTES] = b"pelton L";
const MAGIC_BYTES: usize = 8;
/// How TLS begins: a record of the handshake.
const TLS_HANDSHAKE: u8 = 0x16;
/// How long a connection may take to say what it is.
const INTRODUCTION_WAIT_MAX: Duration = Duration::from_secs(10);
/// Connections that are introduced and not taken up yet.
const READY_CONNECTIONS_MAX: usize = 64;

/// A port that is listened on.
pub struct Door {
    listener: TcpListener,
    address: SocketAddr,
    security: ServerSecurity,
    lanes: Lanes,
}

/// Who is at the other end of a connection.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Where from.
    pub address: SocketAddr,
    /// The certificate it has shown, checked. Nothing without TLS, or if it has shown none.
    pub certificate: Option<CertificateDer<'static>>,
    /// Whether the connection is TLS.
    pub tls: bool,
}

/// A connection that speaks gRPC.
pub struct Connection {
    /// What was read to see what it is.
    begun: [u8; MAGIC_BYTES],
    /// How much of it was given on.
    given: usize,
    stream: Stream,
    caller: Caller,
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
        Ok(Door { listener, address, security, lanes })
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
            let (security, lanes, ready) = (self.security.clone(), self.lanes.clone(), ready.clone());
            tokio::spawn(async move {
                let introduced = introduce(tcp, address, security, lanes);
                match tokio::time::timeout(INTRODUCTION_WAIT_MAX, introduced).await {
                    Ok(Ok(Some(connection))) => {
                        let _ = ready.send(Ok(connection)).await;
                    }
                    Ok(Ok(None)) => {}
                    Ok(Err(error)) => tracing::debug!(peer = %address, %error, "a connection was refused"),
                    Err(_) => tracing::debug!(peer = %address, "a connection said nothing"),
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
) -> io::Result<Option<Connection>> {
    tcp.set_nodelay(true)?;
    let mut stream = match security {
        ServerSecurity::Plain => Stream::Plain(tcp),
        ServerSecurity::Tls(acceptor) => Stream::Tls(Box::new(acceptor.accept(tcp).await?.into())),
    };
    let mut begun = [0; MAGIC_BYTES];
    stream.read_exact(&mut begun).await?;
    if begun == *LANE_MAGIC {
        return introduce_lane(begun, stream, &lanes).await.map(|()| None);
    }
    if matches!(stream, Stream::Plain(_)) && begun[0] == TLS_HANDSHAKE {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it speaks TLS, and this port does not"));
    }
    let certificate = match &stream {
        Stream::Plain(_) => None,
        Stream::Tls(tls) => certificate(tls),
    };
    let caller = Caller { address, certificate, tls: matches!(stream, Stream::Tls(_)) };
    Ok(Some(Connection { begun, given: 0, stream, caller }))
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

fn certificate(tls: &TlsStream<TcpStream>) -> Option<CertificateDer<'static>> {
    let (_, session) = tls.get_ref();
    session.peer_certificates()?.first().map(|certificate| certificate.clone().into_owned())
}

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

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
