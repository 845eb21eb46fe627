"""gRPC's side of HTTP/2, on asyncio: connections, calls and their messages; nothing of Flight.

Read ``call`` for what a service sees, ``connection`` for the frames of a client, ``server`` for the
listener. A service hands ``GrpcServer`` a function that takes every new ``Call`` and returns the
``Handler`` of its messages. Everything runs on the event loop.
Source: RFC 9113 (HTTP/2), RFC 7541 (HPACK), and gRPC over HTTP/2 (PROTOCOL-HTTP2.md).
"""

from engine.http2.call import HIGH_BYTES, Call
from engine.http2.handler import NOBODY, Handler
from engine.http2.server import GrpcServer

__all__ = ["HIGH_BYTES", "NOBODY", "Call", "GrpcServer", "Handler"]
