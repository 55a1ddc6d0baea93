//! Bytes over a connection, and nothing else: the same as the limit of `pelton-bench nexus`.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;

use crate::Failure;

/// What is read and written at once.
const STEP: usize = 1 << 20;

/// Sends as many bytes as each caller says. Says where.
pub(crate) fn serve(all: Arc<Vec<u8>>) -> io::Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    std::thread::spawn(move || {
        for caller in listener.incoming().flatten() {
            // A caller that hangs up has what it wanted.
            let _ = send(caller, &all);
        }
    });
    Ok(address.to_string())
}

fn send(mut caller: TcpStream, all: &[u8]) -> io::Result<()> {
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
    Ok(())
}

/// Takes so many bytes, and looks at none.
pub(crate) fn receive(address: &str, bytes: u64) -> Result<u64, Failure> {
    let mut source = TcpStream::connect(address)?;
    source.write_all(&bytes.to_le_bytes())?;
    let (mut room, mut received) = (vec![0; STEP], 0);
    while received < bytes {
        match source.read(&mut room)? {
            0 => return Err("the other process has hung up".into()),
            len => received += len as u64,
        }
    }
    Ok(received)
}
