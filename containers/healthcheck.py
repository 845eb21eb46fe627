"""HEALTHCHECK of the image and ``helm test`` of the chart: exit 0 when the engine is ready.

``healthcheck.py [URL]``. Without a URL it asks this container's own ``/healthz``, as its variables
say. Where clients must show a certificate it has none to show, so it asks only whether the port is
open.
"""

import http.client
import os
import socket
import ssl
import sys
import urllib.parse

TIMEOUT_S = 3


def own_url() -> str:
    """URL of this container's readiness, from the variables that the engine itself reads."""
    host = os.environ.get("BIND_HOST", "0.0.0.0")
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    host = f"[{host}]" if ":" in host else host
    scheme = "https" if os.environ.get("TLS_CERT_FILE") else "http"
    port = os.environ.get("HTTP_PORT", "8080")
    if not port or os.environ.get("TLS_CLIENT_CA_FILE"):
        scheme = "tcp"
    return f"{scheme}://{host}:{port or os.environ.get('FLIGHT_PORT', '8815')}/healthz"


def check(url: str) -> str:
    """Ask ``url`` once; the reason why it is not ready, or an empty text."""
    parts = urllib.parse.urlsplit(url)
    host, port = parts.hostname or "", parts.port
    if parts.scheme == "tcp":
        socket.create_connection((host, port), timeout=TIMEOUT_S).close()
        return ""
    connection: http.client.HTTPConnection
    if parts.scheme == "https":
        # It asks whether this engine is up, over a connection that it trusts with nothing.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        connection = http.client.HTTPSConnection(host, port, timeout=TIMEOUT_S, context=context)
    else:
        connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
    connection.request("GET", parts.path)
    response = connection.getresponse()
    return (
        "" if response.status == http.client.OK else f"{url}: {response.status} {response.reason}"
    )


def main() -> int:
    """Exit code 0 when ready, 1 when not, with the reason on standard error."""
    url = sys.argv[1] if len(sys.argv) > 1 else own_url()
    try:
        reason = check(url)
    except (OSError, http.client.HTTPException) as error:
        reason = f"{url}: {error}"
    sys.stderr.write(reason)
    return 1 if reason else 0


if __name__ == "__main__":
    sys.exit(main())
