//! A wire that does to one connection what a test says.
#![allow(dead_code, reason = "each test takes what it needs")]

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;

/// Where proxies listen: this machine by another name than that of the sources.
pub(crate) const HOST: &str = "127.0.0.2";

/// What happens to the bytes of one direction, at an offset of it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    None,
    Delay,
    Cut,
    Damage,
    Reorder,
    Swallow,
}

pub(crate) const FAULTS: [Fault; 6] =
    [Fault::None, Fault::Delay, Fault::Cut, Fault::Damage, Fault::Reorder, Fault::Swallow];

#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) fault: Fault,
    pub(crate) at: u64,
    pub(crate) to_source: bool,
    /// Which connection of the round: the first is gRPC, the second its lane.
    pub(crate) connection: u64,
}

impl Plan {
    pub(crate) const NONE: Plan = Plan { fault: Fault::None, at: 0, to_source: false, connection: 0 };
}

/// Passes on what comes for one source.
pub(crate) struct Proxy {
    pub(crate) address: String,
    /// The fault, and how many connections there were.
    plan: Arc<Mutex<(Plan, u64)>>,
}

impl Proxy {
    pub(crate) fn new(runtime: &Runtime, source: String) -> Proxy {
        let plan = Arc::new(Mutex::new((Plan::NONE, 0)));
        let of_task = plan.clone();
        let address = runtime.block_on(async {
            // A lane is opened at the source's port, on the host that was dialled: so it comes by here, too.
            let port = source.rsplit_once(':').expect("it is HOST:PORT").1;
            let listener = TcpListener::bind(format!("{HOST}:{port}")).await.unwrap();
            let address = listener.local_addr().unwrap().to_string();
            tokio::spawn(async move {
                while let Ok((caller, _)) = listener.accept().await {
                    let (plan, number) = {
                        let mut plan = of_task.lock().unwrap();
                        plan.1 += 1;
                        (plan.0, plan.1 - 1)
                    };
                    let source = source.clone();
                    tokio::spawn(async move {
                        let plan = (number == plan.connection).then_some(plan);
                        let _ = pass(caller, &source, plan).await;
                    });
                }
            });
            address
        });
        Proxy { address, plan }
    }

    /// From now on, connections are counted anew.
    pub(crate) fn begin(&self, plan: Plan) {
        *self.plan.lock().unwrap() = (plan, 0);
    }

    /// How many connections there were since it began.
    pub(crate) fn connections(&self) -> u64 {
        self.plan.lock().unwrap().1
    }
}

/// Both directions, until one of them ends.
async fn pass(caller: TcpStream, source: &str, plan: Option<Plan>) -> io::Result<()> {
    let source = TcpStream::connect(source).await?;
    let (from_caller, to_caller) = caller.into_split();
    let (from_source, to_source) = source.into_split();
    let up = plan.filter(|plan| plan.to_source);
    let down = plan.filter(|plan| !plan.to_source);
    tokio::select! {
        passed = pass_on(from_caller, to_source, up) => passed,
        passed = pass_on(from_source, to_caller, down) => passed,
    }
}

async fn pass_on(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    plan: Option<Plan>,
) -> io::Result<()> {
    let (mut at, mut bytes) = (0, vec![0; 16 << 10]);
    let mut plan = plan;
    let mut kept: Option<Vec<u8>> = None;
    loop {
        let len = from.read(&mut bytes).await?;
        if len == 0 {
            return Ok(());
        }
        let chunk = &mut bytes[..len];
        let hit = plan.filter(|plan| (at..at + len as u64).contains(&plan.at));
        at += len as u64;
        match hit.map(|plan| plan.fault) {
            None | Some(Fault::None) => {}
            Some(Fault::Delay) => tokio::time::sleep(Duration::from_millis(40)).await,
            Some(Fault::Cut) => return Ok(()),
            Some(Fault::Damage) => chunk[len / 2] ^= 0x10,
            Some(Fault::Reorder) => {
                // This one goes behind the next one.
                kept = Some(chunk.to_vec());
                plan = None;
                continue;
            }
            // The connection stands, and nothing more comes over it.
            Some(Fault::Swallow) => loop {
                if from.read(&mut bytes).await? == 0 {
                    return Ok(());
                }
            },
        }
        to.write_all(chunk).await?;
        if let Some(kept) = kept.take() {
            to.write_all(&kept).await?;
        }
    }
}
