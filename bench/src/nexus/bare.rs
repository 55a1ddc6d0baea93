//! Bytes over a connection, and nothing else: what feeds are held to.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;

use rustls::{ClientConfig, ClientConnection, ServerConfig, ServerConnection, StreamOwned};

use crate::frame::Failure;

/// What is read and written at once.
const STEP: usize = 1 << 20;

/// Sends as many bytes as each caller says, under TLS if there is a configuration for it. Says where.
pub(super) fn send_bare(all: Arc<Vec<u8>>, tls: Option<Arc<ServerConfig>>) -> io::Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    std::thread::spawn(move || {
        for caller in listener.incoming().flatten() {
            let (all, tls) = (all.clone(), tls.clone());
            std::thread::spawn(move || {
                // A caller that hangs up has what it wanted.
                let _ = match tls {
                    None => send(caller, &all),
                    Some(tls) => ServerConnection::new(tls)
                        .map_err(io::Error::other)
                        .and_then(|connection| send(StreamOwned::new(connection, caller), &all)),
                };
            });
        }
    });
    Ok(address.to_string())
}

fn send(mut caller: impl Read + Write, all: &[u8]) -> io::Result<()> {
    let mut wanted = [0; 8];
    caller.read_exact(&mut wanted)?;
    let mut left = u64::from_le_bytes(wanted);
    for chunk in all.chunks(STEP).cycle() {
        if left == 0 {
            break;
        }
        let len = chunk.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        caller.write_all(&chunk[..len])?;
        left -= len as u64;
    }
    caller.flush()
}

/// Takes so many bytes, and looks at none.
pub(super) fn receive_bare(
    address: &str,
    bytes: u64,
    tls: Option<Arc<ClientConfig>>,
) -> Result<u64, Failure> {
    let source = TcpStream::connect(address)?;
    let Some(tls) = tls else { return receive(source, bytes) };
    let name = IpAddr::V4(Ipv4Addr::LOCALHOST).into();
    let connection = ClientConnection::new(tls, name).map_err(|error| Failure::because(error.to_string()))?;
    receive(StreamOwned::new(connection, source), bytes)
}

fn receive(mut source: impl Read + Write, bytes: u64) -> Result<u64, Failure> {
    source.write_all(&bytes.to_le_bytes())?;
    source.flush()?;
    let (mut room, mut received) = (vec![0; STEP], 0);
    while received < bytes {
        match source.read(&mut room)? {
            0 => return Err(Failure::because("the other process has hung up")),
            len => received += len as u64,
        }
    }
    Ok(received)
}
