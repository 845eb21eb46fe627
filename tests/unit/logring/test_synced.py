"""Going back to the last synced state, on machines with small and with large pages."""

import struct
import zlib

import lmdb
import pytest

from engine.logring.synced import restore


def meta_page(page_bytes, number, txn_id):
    """A page that leads to a state, as LMDB lays it out."""
    page = bytearray(page_bytes)
    struct.pack_into("<Q", page, 0, number)
    struct.pack_into("<I", page, 40, page_bytes)
    struct.pack_into("<Q", page, 144, txn_id)
    return bytes(page)


def test_the_layout_is_the_one_that_lmdb_has(tmp_path):
    env = lmdb.open(str(tmp_path), map_size=1 << 20, lib_version=0)
    with env.begin(write=True) as txn:
        txn.put(b"key", b"value")
    txn_id, page_bytes = env.info()["last_txnid"], env.stat()["psize"]
    env.close()

    data = (tmp_path / "data.mdb").read_bytes()
    page = data[txn_id % 2 * page_bytes :][:page_bytes]

    assert struct.unpack_from("<Q", page, 0)[0] == txn_id % 2
    assert struct.unpack_from("<I", page, 40)[0] == page_bytes
    assert struct.unpack_from("<Q", page, 144)[0] == txn_id


@pytest.mark.parametrize("page_bytes", [4096, 16384, 65536])
@pytest.mark.parametrize("txn_id", [8, 9])
def test_both_pages_lead_to_the_synced_state(tmp_path, page_bytes, txn_id):
    kept = meta_page(page_bytes, txn_id % 2, txn_id)
    (tmp_path / "synced.meta").write_bytes(zlib.crc32(kept).to_bytes(4, "little") + kept)
    newer = [meta_page(page_bytes, number, 20 + number) for number in (0, 1)]
    (tmp_path / "data.mdb").write_bytes(b"".join(newer) + b"rows")

    assert restore(tmp_path)

    data = (tmp_path / "data.mdb").read_bytes()
    other = meta_page(page_bytes, (txn_id - 1) % 2, txn_id - 1)
    assert data == b"".join(sorted([kept, other])) + b"rows"


@pytest.mark.parametrize("size", [0, 3, 100, 4096, 20_000])
def test_what_is_no_such_page_is_left_alone(tmp_path, size):
    kept = meta_page(4096, 0, 8).ljust(size, b"\0")[:size] if size != 4096 else b"\1" * size
    (tmp_path / "synced.meta").write_bytes(zlib.crc32(kept).to_bytes(4, "little") + kept)
    (tmp_path / "data.mdb").write_bytes(b"as it was")

    assert not restore(tmp_path)

    assert (tmp_path / "data.mdb").read_bytes() == b"as it was"
