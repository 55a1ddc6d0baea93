"""Reads a version 2 region from docs/region-format.md alone: python3 read_v2.py FILE

Checks signatures, places, all checksums, lengths, padding, counts and the index's entries; not the
content id (Python has no BLAKE3 of its own), nor ranges, limits and reserved bytes. Prints a line for the
header and one for each blob, in hexadecimal.
"""
import struct
import sys

TABLE = []
for byte in range(256):
    for _ in range(8):
        byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
    TABLE.append(byte)


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def check(holds, what):
    if not holds:
        sys.exit(f"damaged: {what}")


def align_up(x, a):
    return (x + a - 1) // a * a


file = open(sys.argv[1], "rb").read()
check(len(file) >= 12288 and len(file) % 4096 == 0, "file length")

# Header (1.1)
check(file[:8] == b"\x55\x02pelton", "header signature")
check(struct.unpack_from("<I", file, 4092)[0] == crc32c(file[:4092]), "header checksum")
required, _, alignment, block_bytes, region_index, region_count = struct.unpack_from("<6I", file, 8)
if required:
    sys.exit("a newer writer made this file")
check(alignment in (8 << i for i in range(10)), "alignment")
key = file[96 : 96 + struct.unpack_from("<H", file, 82)[0]].decode()
fingerprint = file[48:80].hex() if file[80] else ""

# Trailer (1.6)
at = len(file) - 4096
check(file[at : at + 8] == b"\x55\x02sealed", "trailer signature")
check(struct.unpack_from("<I", file, at + 4092)[0] == crc32c(file[at : at + 4092]), "trailer checksum")
file_bytes, blob_count, blob_bytes, body_end, table, entries, table_crc = struct.unpack_from("<5Q2I", file, at + 8)
check(file_bytes == len(file), "file length in the trailer")
check(body_end <= table and align_up(table + 32 * entries, 4096) == at, "places")
check(crc32c(file[table:at]) == table_crc, "table checksum")

# Sections (1.4)
sections, next_offset = {}, body_end
for i in range(entries):
    kind, flags, offset, length, crc, _ = struct.unpack_from("<2I2Q2I", file, table + 32 * i)
    check(offset == next_offset, "section offset")
    next_offset = offset + align_up(length, 8)
    check(next_offset <= table and crc32c(file[offset:next_offset]) == crc, f"section {kind}")
    if flags & 1 and kind not in (1, 2, 3, 4):
        sys.exit("a newer writer made this file")
    sections[kind] = file[offset : offset + length]
check(next_offset == table, "end of the sections")

# Blocks (1.3)
sums = struct.unpack(f"<{len(sections[1]) // 4}I", sections[1])
check(len(sums) == -(-body_end // block_bytes), "number of blocks")
for i, crc in enumerate(sums):
    block = file[max(4096, i * block_bytes) : min(body_end, (i + 1) * block_bytes)]
    check(crc32c(block) == crc, f"block {i}")

# Body (1.2)
print("region", key, fingerprint, region_index, region_count, sections.get(4, b"").hex())
end, blobs = 4096, []
while True:
    first = align_up(end + 4, alignment)
    check(not any(file[end : first - 4]), "padding")
    length = struct.unpack_from("<I", file, first - 4)[0]
    if length == 0xFFFFFFFF:
        break
    check(first + length <= body_end - 4, "length")
    blobs.append((first, file[first : first + length]))
    end = first + length
check(first == body_end, "end mark")
check(len(blobs) == blob_count and sum(len(blob) for _, blob in blobs) == blob_bytes, "counts")
for number, offset in struct.iter_unpack("<2Q", sections[2][8:]):
    check(blobs[number][0] == offset, "index")
for _, blob in blobs:
    print("blob", blob.hex())
