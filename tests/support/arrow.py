"""Arrow bodies for tests: files, streams, compressed ones, and damaged ones."""

import pyarrow as pa


def file_bytes(table, compression=None):
    return _write(pa.ipc.new_file, table, compression)


def stream_bytes(table, compression=None):
    return _write(pa.ipc.new_stream, table, compression)


def _write(open_writer, table, compression):
    if isinstance(table, dict):
        table = pa.table(table)
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with open_writer(sink, table.schema, options=options) as writer:
        writer.write(table)
    return sink.getvalue().to_pybytes()


def vectors(values, width=None):
    """Rows of float32 as a fixed-size list column."""
    width = len(values[0]) if width is None else width
    return pa.array(values, pa.list_(pa.float32(), width))


def read_file(body):
    return pa.ipc.open_file(body).read_all()
