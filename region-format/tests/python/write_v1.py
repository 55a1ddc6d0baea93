"""Writes a version 1 region from docs/region-format.md alone: python3 write_v1.py OUT BLOB..."""
import struct
import sys

with open(sys.argv[1], "wb") as out:
    out.write(b"\x55\x01")
    for blob in sys.argv[2:]:
        blob = blob.encode()
        out.write(struct.pack("<i", len(blob)) + blob)
