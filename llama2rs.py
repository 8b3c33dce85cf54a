"""The trace file of llama2-rs, as bincode 1.3 writes it.

    metadata    {model_path string, prompt string, steps u64}
    entries     [{pos i32, token i32, text string, logits_hash 32 bytes}]
    merkle_tree {leaves [32 bytes], root: 1 and 32 bytes, or 0}

Numbers are little endian; a string and a list stand behind their length, a u64. Here the metadata is the header, and an
entry is a step whose `next` is the next entry's token; after the last it is None.
"""
import hashlib
import struct


def node_hash(left: bytes, right: bytes) -> bytes:
    """SHA256(left || right); an odd node is promoted, which gives trees of the shape of RFC 6962."""
    return hashlib.sha256(left + right).digest()


def leaf_hash(event: dict) -> bytes:
    """SHA256(pos || token || logits_hash), numbers as little-endian int32."""
    return hashlib.sha256(struct.pack("<ii", event["pos"], event["token"]) + bytes.fromhex(event["logits"])).digest()


def dump(events: list[dict], root: bytes) -> bytes:
    """A header and steps -> the file."""
    def string(text):
        return struct.pack("<Q", len(text.encode())) + text.encode()

    header, *steps = events
    parts = [string(header["model_path"]), string(header["prompt"])]
    parts.append(struct.pack("<QQ", header["steps"], len(steps)))
    for event in steps:
        parts += [struct.pack("<ii", event["pos"], event["token"]), string(event["text"]),
                  bytes.fromhex(event["logits"])]
    parts += struct.pack("<Q", len(steps)), *map(leaf_hash, steps), b"\x01", root
    return b"".join(parts)


def parse(path: str, data: bytes) -> tuple[list[dict], list[bytes], str | None]:
    """A file's bytes -> header and steps, the leaves, and the root in hexadecimal, as they stand there. Raises
    ValueError, naming the field and its place, if they are no such file."""
    offset = 0

    def take(size, what):
        nonlocal offset
        left = len(data) - offset
        if size > left:
            raise ValueError(f"{path}: {what} at byte {offset} has {size} bytes, but {left} bytes are left")
        offset += size
        return data[offset - size:offset]

    def number(what, form="<Q"):
        return struct.unpack(form, take(struct.calcsize(form), what))[0]

    def string(what):
        try:
            return take(number(f"the length of {what}"), what).decode()
        except UnicodeDecodeError:
            raise ValueError(f"{path}: {what} before byte {offset} is not UTF-8") from None

    events = [{"model_path": string("model_path"), "prompt": string("prompt"), "steps": number("steps")}]
    for i in range(number("the number of entries")):
        pos, token = number("pos", "<i"), number("token", "<i")
        if i > 0:
            events[i]["next"] = token
        events.append({"pos": pos, "token": token, "next": None, "text": string("text"),
                       "logits": take(32, "logits_hash").hex()})
    leaves = [take(32, "a leaf") for _ in range(number("the number of leaves"))]
    some = number("the root's presence", "<B")
    if some > 1:
        raise ValueError(f"{path}: the root begins with byte {some}, must be 0 (none) or 1")
    root = take(32, "the root").hex() if some else None
    if offset != len(data):
        raise ValueError(f"{path}: {len(data) - offset} bytes follow the root")
    return events, leaves, root
