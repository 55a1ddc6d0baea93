//! Connecting to another process: gRPC, and lanes beside it.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use pelton_nexus_proto::lane::{LaneAnswer, LaneError, LaneOpening};
use pelton_nexus_proto::messages::Lane;
use pelton_nexus_proto::messages::health::HealthCheckRequest;
use pelton_nexus_proto::messages::health::health_client::HealthClient;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::door;
use crate::stream::{Stream, write_to_stream};
use crate::tls::{self, ClientSecurity};
use crate::told::told;

/// Where another process listens, and how to get there.
#[derive(Clone)]
pub struct Dial {
    host: Arc<str>,
    port: u16,
    security: ClientSecurity,
    connect_wait_max: Duration,
    alive_every: Duration,
}

/// Why a connection did not come about.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DialError {
    /// Not an address.
    #[error("{text:?} is no address: write HOST:PORT")]
    Address {
        /// What was given.
        text: String,
    },
    /// Nobody answers there.
    #[error("{address} can't be reached")]
    Connect {
        /// Where.
        address: String,
        /// Why.
        source: io::Error,
    },
    /// Somebody answers, but one of the two does not trust the other, or only one of them speaks TLS.
    #[error("{address} can't be spoken to: {problem}")]
    Tls {
        /// Where.
        address: String,
        /// Why, and whose certificate it is about.
        problem: String,
    },
    /// It took too long.
    #[error("{address} did not answer within {waited:?}")]
    Timeout {
        /// Where.
        address: String,
        /// How long it was waited for.
        waited: Duration,
    },
    /// The connection stands, but does not speak gRPC.
    #[error("{address} does not speak gRPC")]
    Grpc {
        /// Where.
        address: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It has as many connections as it may have, or as one peer may. Try later.
    #[error("{address} takes no more connections: {why}")]
    Refused {
        /// Where.
        address: String,
        /// What it says, beginning with the limit's name.
        why: String,
    },
    /// A lane was offered and then refused.
    #[error("{address} refuses the lane that it offered: {answer:?}")]
    LaneRefused {
        /// Where.
        address: String,
        /// What it answered.
        answer: LaneAnswer,
    },
    /// What answers at the lane's port is no lane.
    #[error("what answers at {address} is no lane")]
    Lane {
        /// Where.
        address: String,
        /// Why.
        source: LaneError,
    },
}

impl Dial {
    /// Goes to `address`, a `HOST:PORT`.
    ///
    /// # Errors
    /// [`DialError::Address`].
    pub fn new(address: &str, security: ClientSecurity) -> Result<Dial, DialError> {
        let refuse = || DialError::Address { text: address.to_owned() };
        let (host, port) = address.rsplit_once(':').ok_or_else(refuse)?;
        let port = port.parse().map_err(|_| refuse())?;
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        if host.is_empty() {
            return Err(refuse());
        }
        let connect_wait_max = Duration::from_secs(10);
        Ok(Dial { host: host.into(), port, security, connect_wait_max, alive_every: ALIVE_EVERY })
    }

    /// Sets how long connecting may take.
    pub fn connect_wait_max(mut self, wait: Duration) -> Dial {
        self.connect_wait_max = wait;
        self
    }

    /// Sets how often the other side is asked whether it lives while calls are under way, and how long it may take to
    /// answer. Without an answer they end: a machine that has lost its power closes no connection.
    pub fn alive_every(mut self, every: Duration) -> Dial {
        self.alive_every = every;
        self
    }

    /// `HOST:PORT`.
    pub fn address(&self) -> String {
        self.address_of(self.port)
    }

    /// Whether a connection of the other one does as well.
    pub(crate) fn is_same(&self, other: &Dial) -> bool {
        self.host == other.host
            && self.port == other.port
            && self.connect_wait_max == other.connect_wait_max
            && self.alive_every == other.alive_every
            && self.security.is_same(&other.security)
    }

    /// Connects for gRPC, and waits for a first answer: only then has the other side accepted the certificate from here.
    ///
    /// # Errors
    /// [`DialError`]
    pub async fn channel(&self) -> Result<Channel, DialError> {
        // Connected here first, so that what is wrong keeps its own words.
        let first = self.stream(self.port).await?;
        let refusal = Refused::default();
        let first = First { stream: first, begun: false, refusal: refusal.clone() };
        let first = Arc::new(std::sync::Mutex::new(Some(first)));
        let dial = self.clone();
        let connector = tower::service_fn(move |_: Uri| {
            let (first, dial) = (Arc::clone(&first), dial.clone());
            async move {
                let first = first.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
                let first = match first {
                    Some(first) => first,
                    None => {
                        let stream = dial.stream(dial.port).await.map_err(io::Error::other)?;
                        First { stream, begun: false, refusal: Refused::default() }
                    }
                };
                Ok::<_, io::Error>(hyper_util::rt::TokioIo::new(first))
            }
        });
        let scheme = if self.security.is_tls() { "https" } else { "http" };
        let uri = format!("{scheme}://{}", self.address());
        let endpoint = Endpoint::from_shared(uri)
            .map_err(|_| DialError::Address { text: self.address() })?
            .connect_timeout(self.connect_wait_max)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .http2_keep_alive_interval(self.alive_every)
            .keep_alive_timeout(self.alive_every)
            .max_frame_size(MESSAGE_FRAME_BYTES)
            .tcp_nodelay(true);
        let connecting = async {
            let channel = endpoint.connect_with_connector(connector).await?;
            first_answer(&channel).await.map_err(|broken| -> Broken { broken.into() })?;
            Ok::<_, Broken>(channel)
        };
        match tokio::time::timeout(self.connect_wait_max, connecting).await {
            Ok(Ok(channel)) => Ok(channel),
            Ok(Err(source)) => Err(match refusal.get() {
                Some(Refusal::Tls(problem)) => {
                    DialError::Tls { address: self.address(), problem: problem.clone() }
                }
                Some(Refusal::Full(why)) => DialError::Refused { address: self.address(), why: why.clone() },
                None => DialError::Grpc { address: self.address(), source },
            }),
            Err(_) => Err(DialError::Timeout { address: self.address(), waited: self.connect_wait_max }),
        }
    }

    /// Opens the lane that the other side has offered.
    ///
    /// # Errors
    /// [`DialError`]
    pub async fn lane(&self, lane: &Lane) -> Result<Stream, DialError> {
        let port = u16::try_from(lane.port).unwrap_or(0);
        let address = self.address_of(port);
        let opening = async {
            let mut to = self.clone();
            if !lane.host.is_empty() {
                to.host = lane.host.as_str().into();
            }
            let mut stream = to.stream(port).await?;
            let connect = |source| DialError::Connect { address: address.clone(), source };
            let token = lane.token.as_slice().try_into().map_err(|_| {
                connect(io::Error::new(io::ErrorKind::InvalidData, "the token has not 32 bytes"))
            })?;
            stream.write_all(&LaneOpening { token }.encode()).await.map_err(connect)?;
            stream.flush().await.map_err(connect)?;
            let mut answer = [0; LaneAnswer::BYTES];
            stream.read_exact(&mut answer).await.map_err(connect)?;
            let refuse = |source| DialError::Lane { address: address.clone(), source };
            match LaneAnswer::decode(&answer).map_err(refuse)? {
                LaneAnswer::Taken => Ok(stream),
                answer => Err(DialError::LaneRefused { address: address.clone(), answer }),
            }
        };
        match tokio::time::timeout(self.connect_wait_max, opening).await {
            Ok(opened) => opened,
            Err(_) => Err(DialError::Timeout { address, waited: self.connect_wait_max }),
        }
    }

    async fn stream(&self, port: u16) -> Result<Stream, DialError> {
        let address = self.address_of(port);
        let connecting = async {
            let connect = |source| DialError::Connect { address: address.clone(), source };
            let tcp = TcpStream::connect((&*self.host, port)).await.map_err(connect)?;
            tcp.set_nodelay(true).map_err(connect)?;
            match &self.security {
                ClientSecurity::Plain => Ok(Stream::Plain(tcp)),
                ClientSecurity::Tls(tls) => {
                    let refuse = |problem| DialError::Tls { address: address.clone(), problem };
                    let name = ServerName::try_from(self.host.to_string()).map_err(|_| {
                        refuse(format!("{} is no name that a certificate can have", self.host))
                    })?;
                    let connecting = tls.connector().await.connect(name, tcp);
                    let stream = connecting.await.map_err(|error| refuse(tls::explain(&error)))?;
                    Ok(Stream::Tls(Box::new(stream.into())))
                }
            }
        };
        match tokio::time::timeout(self.connect_wait_max, connecting).await {
            Ok(connected) => connected,
            Err(_) => Err(DialError::Timeout { address, waited: self.connect_wait_max }),
        }
    }

    fn address_of(&self, port: u16) -> String {
        if self.host.contains(':') {
            format!("[{}]:{port}", self.host)
        } else {
            format!("{}:{port}", self.host)
        }
    }
}

/// Asks for what everybody may have. That the other side does not serve it is an answer, too.
async fn first_answer(channel: &Channel) -> Result<(), String> {
    let mut health = HealthClient::new(channel.clone());
    match health.check(HealthCheckRequest::default()).await {
        Ok(_) => Ok(()),
        // What the other side has said stands in its trailers; what became of the connection has a cause.
        Err(status) => std::error::Error::source(&status).map_or(Ok(()), |cause| Err(told(cause))),
    }
}

/// Why gRPC did not begin.
type Broken = Box<dyn std::error::Error + Send + Sync>;

/// Why the other side closed a connection before it said anything.
enum Refusal {
    /// What is wrong with TLS.
    Tls(String),
    /// Which limit there was.
    Full(String),
}

type Refused = Arc<OnceLock<Refusal>>;

/// A connection of which the first thing that is read tells whether both sides speak the same.
struct First {
    stream: Stream,
    /// Whether something was read.
    begun: bool,
    refusal: Refused,
}

impl AsyncRead for First {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if self.begun {
            return read;
        }
        match &read {
            Poll::Pending => return read,
            Poll::Ready(Err(error)) if matches!(self.stream, Stream::Tls(_)) => {
                let _ = self.refusal.set(Refusal::Tls(tls::explain(error)));
            }
            Poll::Ready(Err(_)) => {}
            Poll::Ready(Ok(())) => {
                let first = &buffer.filled()[before..];
                let is_plain = matches!(self.stream, Stream::Plain(_));
                if is_plain && first.first() == Some(&TLS_ALERT) {
                    let text = "it speaks TLS, and was spoken to without".to_owned();
                    let _ = self.refusal.set(Refusal::Tls(text));
                } else if let Some(why) = door::read_goodbye(first) {
                    let _ = self.refusal.set(Refusal::Full(why));
                }
            }
        }
        self.begun = true;
        read
    }
}

write_to_stream!(First);

/// How a record of TLS begins that tells of an error.
const TLS_ALERT: u8 = 0x15;

/// What HTTP/2 lets a peer send ahead. Credit is what bounds memory; this must not be what bounds the rate.
pub(crate) const STREAM_WINDOW_BYTES: u32 = 8 << 20;

/// The same for all streams of a connection together: enough for as many as share one, so that a stream whose taker waits for
/// a disk does not hold up the others. It is leave to send, and takes no memory before something comes.
pub(crate) const CONNECTION_WINDOW_BYTES: u32 = 64 * STREAM_WINDOW_BYTES;

/// How often a connection is asked whether its other end lives, and how long that may take to answer.
pub(crate) const ALIVE_EVERY: Duration = Duration::from_secs(20);

/// What one HTTP/2 frame may have: with its default of 16 KiB a parcel is 64 frames, which cost the receiver a third of its time.
pub(crate) const MESSAGE_FRAME_BYTES: u32 = 256 << 10;
