"""The sample (docs/design.md S2, S2b): XXH64 of a key against a share of 2^64, or a hash of 32 bit. Must not know: where requests come from.

Source of XXH64: the specification in Cyan4973/xxHash, doc/xxhash_spec.md.
"""

import struct

MASK = (1 << 64) - 1
P1, P2, P3, P4, P5 = 0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5


def rotate(x: int, bits: int) -> int:
    return (x << bits | x >> 64 - bits) & MASK


def round_of(acc: int, lane: int) -> int:
    return rotate((acc + lane * P2) & MASK, 31) * P1 & MASK


def xxh64(data: bytes, seed: int = 0) -> int:
    """XXH64 of the bytes; seed: 64 bit, unsigned."""
    at, length = 0, len(data)
    if length >= 32:
        accs = [(seed + P1 + P2) & MASK, (seed + P2) & MASK, seed, (seed - P1) & MASK]
        while at + 32 <= length:
            accs = [round_of(acc, lane) for acc, lane in zip(accs, struct.unpack_from("<4Q", data, at), strict=True)]
            at += 32
        h = sum(rotate(acc, bits) for acc, bits in zip(accs, (1, 7, 12, 18), strict=True)) & MASK
        for acc in accs:
            h = ((h ^ round_of(0, acc)) * P1 + P4) & MASK
    else:
        h = (seed + P5) & MASK
    h = (h + length) & MASK
    while at + 8 <= length:
        h = (rotate(h ^ round_of(0, struct.unpack_from("<Q", data, at)[0]), 27) * P1 + P4) & MASK
        at += 8
    if at + 4 <= length:
        h = (rotate(h ^ struct.unpack_from("<I", data, at)[0] * P1 & MASK, 23) * P2 + P3) & MASK
        at += 4
    for byte in data[at:]:
        h = rotate(h ^ byte * P5 & MASK, 11) * P1 & MASK
    h = (h ^ h >> 33) * P2 & MASK
    h = (h ^ h >> 29) * P3 & MASK
    return h ^ h >> 32


def mix32(h: int) -> int:
    """The finalizer of MurmurHash3 (32 bit)."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        h = (h ^ h >> shift) * factor & 0xFFFFFFFF
    return h ^ h >> 16


def kernel_hash(key: bytes, seed: int = 0) -> int:
    """S2b: a connection's hash in 32-bit arithmetic, the same for both directions. key: of `connection`."""
    total = 0
    for end in (key[:18], key[18:36]):
        h = 0
        for word in struct.unpack(">4I", end[:16]):
            h = (h * 0x9E3779B1 + word) & 0xFFFFFFFF
        total += mix32(h ^ int.from_bytes(end[16:], "big") * 0x85EBCA77 & 0xFFFFFFFF)
    return mix32((total ^ seed ^ seed >> 32) & 0xFFFFFFFF)


def first_field(head: bytes, name: bytes) -> bytes | None:
    """The value of the first line of this name without outer blanks; None when there is none."""
    for line in head.split(b"\n")[1:]:
        field, colon, value = line.partition(b":")
        if colon and field.lower() == name.lower():
            return value.strip(b" \t\r")
    return None


def named_pair(pairs: bytes, separator: bytes, name: bytes) -> bytes | None:
    """The value in `name=value` pairs, the first of that name; None when there is none."""
    for pair in pairs.split(separator):
        key, equals, value = pair.partition(b"=")
        if equals and key.strip(b" \t") == name:
            return value.strip(b" \t") if separator == b";" else value
    return None


def key_of(sample_by: str, client: tuple[bytes, int], server: tuple[bytes, int], seq: int, head: bytes) -> bytes | None:
    """The key that is hashed; None when the request lacks it. Addresses have 16 bytes, IPv4 is v4-mapped."""
    kind, _, name = sample_by.partition(":")
    target = head.split(b"\n", 1)[0].split(b" ")[1]
    if kind in ("request", "connection"):
        ends = b"".join(address + port.to_bytes(2, "big") for address, port in (client, server))
        return ends + seq.to_bytes(4, "big") if kind == "request" else ends
    if kind == "client-ip":
        return client[0]
    if kind == "path":
        return target.partition(b"?")[0]
    if kind == "header":
        return first_field(head, name.encode())
    if kind == "cookie":
        cookie = first_field(head, b"cookie")
        return None if cookie is None else named_pair(cookie, b";", name.encode())
    if kind == "query":
        return named_pair(target.partition(b"?")[2], b"&", name.encode())
    raise ValueError(sample_by)


def is_taken(key: bytes | None, share: int, seed: int = 0, sample_by: str = "request") -> bool:
    """share: parts per million. Lacking the key is not taken, at 100 % neither."""
    if key is None:
        return False
    value = kernel_hash(key, seed) << 32 if sample_by == "connection:kernel" else xxh64(key, seed)
    return share == 1_000_000 or value < (share << 64) // 1_000_000
