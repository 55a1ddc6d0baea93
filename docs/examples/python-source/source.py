"""A source in Python: streams the lines of a CSV file as blobs, to whoever asks by Feed.

Only grpcio and what it generates from Pelton's .proto files is needed; docs/nexus.md tells the rules that are
followed here. Run: python source.py FILE [PORT]
"""

import struct
import sys
import threading
from concurrent import futures

import grpc

from pelton.nexus.v1 import common_pb2, feed_pb2, feed_pb2_grpc

PARCEL_BYTES = 1 << 20
PARCEL_COST_BYTES = 256
HEARTBEAT_SECONDS = 5


def crc32c_table():
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = (byte >> 1) ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return table


TABLE = crc32c_table()


def crc32c(data):
    """The Castagnoli checksum. The package google-crc32c does it a thousand times faster."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


def parcels(path):
    """Blobs of a file in parcels: for each blob its length and its bytes. The first line names the columns."""
    body, count = bytearray(), 0
    with open(path, "rb") as rows:
        next(rows, None)
        for row in rows:
            blob = row.rstrip(b"\r\n")
            if count and len(body) + 4 + len(blob) > PARCEL_BYTES:
                yield bytes(body), count
                body, count = bytearray(), 0
            body += struct.pack("<I", len(blob)) + blob
            count += 1
    if count:
        yield bytes(body), count


class Heard:
    """What the other end has said. A thread of its own listens, so that credit comes while data is sent."""

    def __init__(self, messages):
        self.changed = threading.Condition()
        self.request = None
        self.credit = 0
        self.done = None
        self.is_over = False
        threading.Thread(target=self.listen, args=(messages,), daemon=True).start()

    def listen(self, messages):
        try:
            for message in messages:
                with self.changed:
                    kind = message.WhichOneof("kind")
                    if kind == "request":
                        self.request = message.request
                    elif kind == "credit":
                        self.credit += message.credit.bytes
                    elif kind == "done":
                        self.done = message.done
                    elif kind == "abort":
                        print("aborted:", message.abort.text, file=sys.stderr)
                        self.is_over = True
                    # A kind that is not known here is a sign of life, no more.
                    self.changed.notify_all()
        except grpc.RpcError:
            pass  # The connection is gone.
        with self.changed:
            self.is_over = True
            self.changed.notify_all()

    def wait(self, ready):
        """Says heartbeats until something is so. Afterwards `is_over` tells whether there is a use in going on."""
        while True:
            with self.changed:
                if ready() or self.is_over:
                    return
                changed = self.changed.wait(HEARTBEAT_SECONDS)
            if not changed:
                yield feed_pb2.FeedMessage(heartbeat=feed_pb2.Heartbeat())


class CsvSource(feed_pb2_grpc.FeedServicer):
    def __init__(self, path):
        self.path = path

    def Open(self, messages, context):
        hello = next(messages).hello
        if 1 not in hello.versions or hello.role != feed_pb2.ROLE_RECEIVER:
            reason = common_pb2.REASON_VERSION if 1 not in hello.versions else common_pb2.REASON_FORBIDDEN
            text = "version 1 is spoken here, and nothing is taken"
            yield feed_pb2.FeedMessage(abort=feed_pb2.Abort(reason=reason, text=text))
            return
        yield feed_pb2.FeedMessage(welcome=feed_pb2.Welcome(version=1, software="csv source 1"))
        heard = Heard(messages)
        yield from heard.wait(lambda: heard.request)
        if heard.is_over:
            return
        request = heard.request
        if request.HasField("resume") and request.resume.parcels:
            reason, text = common_pb2.REASON_NOT_REPLAYABLE, "it always begins at the start"
            yield feed_pb2.FeedMessage(abort=feed_pb2.Abort(reason=reason, text=text))
            return
        accept = feed_pb2.Accept(key=request.key, fingerprint=request.fingerprint)
        yield feed_pb2.FeedMessage(accept=accept)

        sequence, items, total = 0, 0, 0
        for body, count in parcels(self.path):
            cost = PARCEL_COST_BYTES + len(body)
            if heard.credit < cost:
                yield feed_pb2.FeedMessage(want=feed_pb2.Want(bytes=cost, sequence=sequence))
                yield from heard.wait(lambda: heard.credit >= cost)
            if heard.is_over:
                return
            with heard.changed:
                heard.credit -= cost
            yield feed_pb2.FeedMessage(
                parcel=feed_pb2.Parcel(
                    sequence=sequence,
                    blob_count=count,
                    inflated_bytes=len(body),
                    crc32c=crc32c(body),
                    bytes=body,
                )
            )
            sequence, items, total = sequence + 1, items + count, total + len(body)
        yield feed_pb2.FeedMessage(
            complete=feed_pb2.Complete(
                parcels=sequence, items=items, bytes=total, expected=items, potential=items
            )
        )
        yield from heard.wait(lambda: heard.done)
        if heard.done:
            print(f"{request.key}: {items} blobs", flush=True)


def main():
    port = sys.argv[2] if len(sys.argv) > 2 else "0"
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=16))
    feed_pb2_grpc.add_FeedServicer_to_server(CsvSource(sys.argv[1]), server)
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    print(f"feeding at nexus://127.0.0.1:{port}", flush=True)
    server.wait_for_termination()


if __name__ == "__main__":
    main()
