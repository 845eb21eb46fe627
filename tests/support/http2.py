"""HTTP/2 as bytes: what a client sends, and what comes back, frame by frame."""

import dataclasses
import struct

import hpack

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST, SETTINGS, PUSH, PING, GOAWAY, WINDOW, CONTINUATION = range(10)
END_STREAM, ACK, END_HEADERS, PADDED = 1, 1, 4, 8
PROTOCOL_ERROR, FLOW_CONTROL_ERROR, FRAME_SIZE_ERROR = 1, 3, 6
COMPRESSION_ERROR, ENHANCE_YOUR_CALM = 9, 11
INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE = 4, 5
REQUEST = (
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":path", b"/a/b"),
    (b":authority", b"edge"),
    (b"content-type", b"application/grpc"),
    (b"te", b"trailers"),
)


def frame(kind, flags=0, stream=0, payload=b""):
    return len(payload).to_bytes(3, "big") + struct.pack(">BBL", kind, flags, stream) + payload


def settings(*pairs):
    return frame(SETTINGS, payload=b"".join(struct.pack(">HL", *pair) for pair in pairs))


def window(stream, size_bytes):
    return frame(WINDOW, 0, stream, struct.pack(">L", size_bytes))


def reset(stream, code=8):
    return frame(RST, 0, stream, struct.pack(">L", code))


def block(fields):
    """Fields as literals that no table remembers, below 127 bytes each."""
    return b"".join(
        b"\0" + bytes((len(name),)) + name + bytes((len(value),)) + value for name, value in fields
    )


def request(stream=1, *more, path=b"/a/b", flags=END_HEADERS):
    """The headers of a gRPC call."""
    fields = [(name, path if name == b":path" else value) for name, value in REQUEST]
    return frame(HEADERS, flags, stream, block([*fields, *more]))


def message(content, flag=0):
    """A gRPC message."""
    return struct.pack(">BL", flag, len(content)) + content


def data(stream, content=b"", flags=0):
    return frame(DATA, flags, stream, content)


def padded(stream, content, size_bytes, flags=0):
    return data(stream, bytes((size_bytes,)) + content + bytes(size_bytes), flags | PADDED)


@dataclasses.dataclass(frozen=True)
class Frame:
    kind: int
    flags: int
    stream: int
    payload: bytes

    @property
    def code(self):
        """Of RST_STREAM and GOAWAY, or what a WINDOW_UPDATE gives."""
        return int.from_bytes(self.payload[4 * (self.kind == GOAWAY) :][:4], "big")


def split(received):
    """Whole frames, and the bytes that are left."""
    frames, at = [], 0
    while len(received) - at >= 9:
        size = int.from_bytes(received[at : at + 3], "big")
        if len(received) - at - 9 < size:
            break
        kind, flags, stream = struct.unpack_from(">BBL", received, at + 3)
        frames.append(Frame(kind, flags, stream, bytes(received[at + 9 : at + 9 + size])))
        at += 9 + size
    return frames, received[at:]


class Replies:
    """The frames of an engine, by stream, with its headers read."""

    def __init__(self, frames=()):
        self.headers = {}  # by stream: one dictionary for all of its blocks
        self.content = {}  # by stream: bytes of its messages
        self.ended = set()
        self._decoder = hpack.Decoder(1 << 20)
        self._decoder.max_allowed_table_size = 0  # as of a client that wants none
        self._block = b""
        for one in frames:
            self.add(one)

    def add(self, one):
        if one.kind == DATA:
            self.content[one.stream] = self.content.get(one.stream, b"") + one.payload
        elif one.kind in {HEADERS, CONTINUATION}:
            self._block += one.payload
            if one.flags & END_HEADERS:
                fields, self._block = self._decoder.decode(self._block, raw=True), b""
                self.headers.setdefault(one.stream, {}).update(
                    {bytes(name): bytes(value) for name, value in fields}
                )
        if one.flags & END_STREAM and one.kind in {DATA, HEADERS}:
            self.ended.add(one.stream)

    def status(self, stream=1):
        """Of gRPC; None where the call goes on."""
        told = self.headers.get(stream, {}).get(b"grpc-status")
        return None if told is None else int(told)

    def text(self, stream=1):
        return self.headers[stream].get(b"grpc-message", b"").decode()

    def messages(self, stream=1):
        content, found = self.content.get(stream, b""), []
        while content:
            size = int.from_bytes(content[1:5], "big")
            found.append(content[5 : 5 + size])
            content = content[5 + size :]
        return found
