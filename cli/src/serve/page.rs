//! The page that monitors read, by as little HTTP as that takes: a line is read, an answer is written, and that is all.

use std::sync::Arc;
use std::time::Duration;

use metrics_exporter_prometheus::PrometheusHandle;
use pelton::Cache;
use pelton::nexus::node::NodeHandle;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

/// Who asks at once. The others wait in the system's queue.
const ASKING_MAX: usize = 16;
/// How long asking and answering may take.
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(10);
/// What a request may have before it is answered or refused.
const HEAD_BYTES_MAX: usize = 8 << 10;

/// Answers until the runtime ends.
pub(super) async fn serve(listener: TcpListener, cache: Cache, page: PrometheusHandle, node: NodeHandle) {
    let asking = Arc::new(Semaphore::new(ASKING_MAX));
    loop {
        let Ok(place) = Arc::clone(&asking).acquire_owned().await else { return };
        let Ok((tcp, _)) = listener.accept().await else {
            // One that has gone again, or too many descriptors: both pass.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let (cache, page, node) = (cache.clone(), page.clone(), node.clone());
        tokio::spawn(async move {
            let _place = place;
            let _ = tokio::time::timeout(ANSWER_WAIT_MAX, answer(tcp, cache, page, node)).await;
        });
    }
}

async fn answer(mut tcp: TcpStream, cache: Cache, page: PrometheusHandle, node: NodeHandle) {
    let mut head = Vec::new();
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        if head.len() > HEAD_BYTES_MAX || !matches!(tcp.read_buf(&mut head).await, Ok(1..)) {
            return;
        }
    }
    let line = String::from_utf8_lossy(head.split(|byte| *byte == b'\r').next().unwrap_or_default());
    let mut words = line.split(' ');
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let (status, body) = match (method, path.split('?').next().unwrap_or_default()) {
        ("GET" | "HEAD", "/metrics") => {
            let rendered = tokio::task::spawn_blocking(move || {
                // Gauges are told when somebody asks for all of them.
                let _ = cache.stats();
                page.run_upkeep();
                page.render()
            });
            ("200 OK", rendered.await.unwrap_or_default())
        }
        ("GET" | "HEAD", "/ready") if node.is_serving() => ("200 OK", "ready\n".to_owned()),
        ("GET" | "HEAD", "/ready") => ("503 Service Unavailable", "starts or drains\n".to_owned()),
        ("GET" | "HEAD", "/live") => ("200 OK", "live\n".to_owned()),
        ("GET" | "HEAD", _) => ("404 Not Found", "there are /metrics, /ready and /live\n".to_owned()),
        _ => ("405 Method Not Allowed", "only GET\n".to_owned()),
    };
    let mut answer = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    if method != "HEAD" {
        answer.push_str(&body);
    }
    if tcp.write_all(answer.as_bytes()).await.is_ok() {
        let _ = tcp.shutdown().await;
    }
}
