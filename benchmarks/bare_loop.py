"""What a good engineer writes by hand in an hour: the yardstick for the engine.

One ASGI function on uvicorn (httptools, uvloop, access log off): reads the body, orjson or pyarrow,
``session.run``, and the same legacy reply, with no limits, errors, metrics or deadlines.
Run as ``python -m benchmarks.bare_loop MODEL THREADS``; prints the port.
"""

import socket
import sys
import time

import numpy as np
import onnxruntime as ort
import orjson
import pyarrow as pa
import uvicorn

COLUMN = "tensor"


def make_app(model, threads):
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    input_name = session.get_inputs()[0].name
    shape = [-1, *session.get_inputs()[0].shape[1:]]

    async def app(scope, receive, send):
        started_ns = time.monotonic_ns()
        body = bytearray()
        while True:
            message = await receive()
            body += message["body"]
            if not message.get("more_body"):
                break
        if (b"content-type", b"application/vnd.apache.arrow.file") in scope["headers"]:
            with pa.ipc.open_file(pa.py_buffer(body)) as reader:
                column = reader.get_batch(0).column(COLUMN)
            values = column.flatten().to_numpy()
        else:
            values = np.array([row[COLUMN] for row in orjson.loads(body)], np.float32)
        parsed_ns = time.monotonic_ns()
        (result,) = session.run(None, {input_name: values.reshape(shape)})
        done_ns = time.monotonic_ns()
        reply = {
            "check_failures": [],
            "elapsed": [parsed_ns - started_ns, done_ns - parsed_ns],
            "model_name": "bare",
            "model_version": "1",
            "original_data": None,
            "outputs": [
                {"Float": {"data": result.ravel().astype("float64"), "dim": result.shape, "v": 1}}
            ],
            "pipeline_name": "bare",
            "shadow_data": {},
            "time": time.time_ns() // 1_000_000,
        }
        text = orjson.dumps([reply], option=orjson.OPT_SERIALIZE_NUMPY)
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(text)),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": text})

    return app


def serve(app):
    """Listen on a free port, say so, and serve until ended."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        app,
        http="httptools",
        loop="uvloop",
        ws="none",
        lifespan="off",
        access_log=False,
        log_level="warning",
    )
    print(f"Listening: HTTP on 127.0.0.1:{listener.getsockname()[1]}", flush=True)
    print("Ready", flush=True)
    uvicorn.Server(config).run([listener])


if __name__ == "__main__":
    serve(make_app(sys.argv[1], int(sys.argv[2])))
