//! DoGet of Arrow Flight: batches of one column, whose values are blobs.

use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::{ArrayRef, BinaryArray, RecordBatch};
use arrow_flight::encode::FlightDataEncoderBuilder;
use arrow_flight::error::FlightError;
use arrow_flight::flight_service_server::{FlightService, FlightServiceServer};
use arrow_flight::{
    Action, ActionType, Criteria, Empty, FlightClient, FlightData, FlightDescriptor, FlightInfo,
    HandshakeRequest, HandshakeResponse, PollInfo, PutResult, SchemaResult, Ticket,
};
use futures::stream::{BoxStream, StreamExt, TryStreamExt};
use tokio::runtime::Runtime;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Endpoint, Server};
use tonic::{Request, Response, Status, Streaming};

use crate::{BATCH_BYTES, BLOB_BYTES, Failure};

/// What HTTP/2 lets each side send ahead, and its frames: as Pelton sets them.
const WINDOW_BYTES: u32 = 8 << 20;
const FRAME_BYTES: u32 = 256 << 10;

/// Serves all of the bytes, as often as a ticket asks for. Says where.
pub(crate) fn serve(runtime: &Runtime, all: &[u8]) -> Result<String, Failure> {
    let batch = |bytes: &[u8]| {
        let blobs: ArrayRef = Arc::new(BinaryArray::from_iter_values(bytes.chunks_exact(BLOB_BYTES)));
        RecordBatch::try_from_iter([("blob", blobs)])
    };
    let batches = all.chunks_exact(BATCH_BYTES).map(batch).collect::<Result<Vec<_>, _>>()?;
    let _guard = runtime.enter();
    let incoming = TcpIncoming::bind("127.0.0.1:0".parse()?)?.with_nodelay(Some(true));
    let address = incoming.local_addr()?;
    let serving = Server::builder()
        .initial_connection_window_size(WINDOW_BYTES)
        .initial_stream_window_size(WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES)
        .add_service(FlightServiceServer::new(Batches(Arc::new(batches))))
        .serve_with_incoming(incoming);
    runtime.spawn(serving);
    Ok(address.to_string())
}

/// Gets so many bytes of blobs, decodes the batches, and lets them go.
pub(crate) fn get(runtime: &Runtime, address: &str, bytes: u64) -> Result<u64, Failure> {
    runtime.block_on(async {
        let channel = Endpoint::from_shared(format!("http://{address}"))?
            .initial_connection_window_size(WINDOW_BYTES)
            .initial_stream_window_size(WINDOW_BYTES)
            .max_frame_size(FRAME_BYTES)
            .tcp_nodelay(true)
            .connect()
            .await?;
        let ticket = Ticket::new((bytes / BATCH_BYTES as u64).to_le_bytes().to_vec());
        let mut batches = FlightClient::new(channel).do_get(ticket).await?;
        let mut came = 0;
        while let Some(batch) = batches.try_next().await? {
            let blobs = batch.column(0).as_binary::<i32>();
            came += blobs.iter().flatten().map(|blob| blob.len() as u64).sum::<u64>();
        }
        Ok(came)
    })
}

/// All that is served.
struct Batches(Arc<Vec<RecordBatch>>);

type Answer<T> = Result<Response<T>, Status>;

fn not_here<T>() -> Answer<T> {
    Err(Status::unimplemented("only DoGet is served here"))
}

#[tonic::async_trait]
impl FlightService for Batches {
    type HandshakeStream = BoxStream<'static, Result<HandshakeResponse, Status>>;
    type ListFlightsStream = BoxStream<'static, Result<FlightInfo, Status>>;
    type DoGetStream = BoxStream<'static, Result<FlightData, Status>>;
    type DoPutStream = BoxStream<'static, Result<PutResult, Status>>;
    type DoExchangeStream = BoxStream<'static, Result<FlightData, Status>>;
    type DoActionStream = BoxStream<'static, Result<arrow_flight::Result, Status>>;
    type ListActionsStream = BoxStream<'static, Result<ActionType, Status>>;

    async fn do_get(&self, request: Request<Ticket>) -> Answer<Self::DoGetStream> {
        let ticket = request.into_inner().ticket;
        let count = ticket[..].try_into().map(u64::from_le_bytes);
        let count = count.map_err(|_| Status::invalid_argument("a ticket is a number of 8 bytes"))?;
        let all = self.0.clone();
        let batches = (0..count).map(move |number| Ok(all[number as usize % all.len()].clone()));
        let encoded = FlightDataEncoderBuilder::new()
            .build(futures::stream::iter(batches))
            .map_err(|error: FlightError| Status::internal(error.to_string()));
        Ok(Response::new(encoded.boxed()))
    }

    async fn handshake(&self, _: Request<Streaming<HandshakeRequest>>) -> Answer<Self::HandshakeStream> {
        not_here()
    }

    async fn list_flights(&self, _: Request<Criteria>) -> Answer<Self::ListFlightsStream> {
        not_here()
    }

    async fn get_flight_info(&self, _: Request<FlightDescriptor>) -> Answer<FlightInfo> {
        not_here()
    }

    async fn poll_flight_info(&self, _: Request<FlightDescriptor>) -> Answer<PollInfo> {
        not_here()
    }

    async fn get_schema(&self, _: Request<FlightDescriptor>) -> Answer<SchemaResult> {
        not_here()
    }

    async fn do_put(&self, _: Request<Streaming<FlightData>>) -> Answer<Self::DoPutStream> {
        not_here()
    }

    async fn do_exchange(&self, _: Request<Streaming<FlightData>>) -> Answer<Self::DoExchangeStream> {
        not_here()
    }

    async fn do_action(&self, _: Request<Action>) -> Answer<Self::DoActionStream> {
        not_here()
    }

    async fn list_actions(&self, _: Request<Empty>) -> Answer<Self::ListActionsStream> {
        not_here()
    }
}
