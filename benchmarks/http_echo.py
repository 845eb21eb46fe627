"""The least that an ASGI application can do: every body goes back as it came.

``python -m benchmarks.http_echo`` listens on a free port, says so, and echoes until it is ended.
"""

from benchmarks.bare_loop import serve


async def echo(_scope, receive, send):
    body = bytearray()
    while True:
        message = await receive()
        body += message["body"]
        if not message.get("more_body"):
            break
    headers = [
        (b"content-type", b"application/octet-stream"),
        (b"content-length", b"%d" % len(body)),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


if __name__ == "__main__":
    serve(echo)
