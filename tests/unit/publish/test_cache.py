import fcntl
import os
import threading

import pytest
from support.artifacts import LayoutWriter, sha256

from engine.publish.artifact import FetchError
from engine.publish.blobfile import BlobFile
from engine.publish.cache import ArtifactCache
from engine.publish.manifest import Descriptor

CONTENT = b"0123456789"
BLOB = Descriptor("", f"sha256:{sha256(CONTENT)}", len(CONTENT), {})


@pytest.fixture
def files(tmp_path):
    return tmp_path / "part", tmp_path / "final"


def test_a_blob_appears_when_it_is_whole(files):
    with BlobFile(BLOB, *files) as file:
        file.write(CONTENT[:4])
        file.write(CONTENT[4:])
        assert not files[1].exists()
        assert file.digest == BLOB.digest
        file.commit()

    assert files[1].read_bytes() == CONTENT
    assert not files[0].exists()


def test_a_part_is_gone_on_with(files):
    with BlobFile(BLOB, *files) as file:
        file.write(CONTENT[:4])
    with BlobFile(BLOB, *files) as file:
        assert file.size_bytes == 4
        file.write(CONTENT[4:])
        assert file.digest == BLOB.digest


def test_a_part_that_is_too_long_is_dropped(files):
    files[0].write_bytes(CONTENT + b"x")
    with BlobFile(BLOB, *files) as file:
        assert file.size_bytes == 0

    assert files[0].read_bytes() == b""


def test_more_bytes_than_said_are_refused(files):
    with BlobFile(BLOB, *files) as file:
        file.write(CONTENT)
        with pytest.raises(FetchError, match="more bytes are sent"):
            file.write(b"x")


def test_what_is_not_verified_is_not_committed(files):
    with BlobFile(BLOB, *files) as file:
        file.write(CONTENT[:4])
        with pytest.raises(AssertionError, match="This is a bug"):
            file.commit()

    assert not files[1].exists()


def test_a_link_in_place_of_a_part_is_refused(files, tmp_path):
    files[0].symlink_to(tmp_path / "elsewhere")

    with pytest.raises(FetchError, match="cannot write"):
        BlobFile(BLOB, *files)
    assert not (tmp_path / "elsewhere").exists()


def kept(cache, writer, number, **signature):
    """Put a publish into the cache as a pull does."""
    content = b"model %d" % number
    manifest = writer.manifest({"m": content})
    entry = Descriptor("", manifest["digest"], manifest["size"], {})
    cache.keep({f"host/p:{number}": entry, **signature})
    return entry, sha256(content)


def test_the_latest_publishes_stay_and_what_is_in_use(tmp_path):
    writer = LayoutWriter(tmp_path)
    cache = ArtifactCache(tmp_path)
    with cache.writing(print, 10):
        first, first_sha = kept(cache, writer, 0)
        cache.in_use.add(first.digest)
        others = [kept(cache, writer, number)[1] for number in range(1, 7)]

    held = {path.name for path in (tmp_path / "blobs" / "sha256").iterdir()}
    assert first_sha in held
    assert [sha in held for sha in others] == [False, False, True, True, True, True]
    assert cache.find("host/p:0").digest == first.digest
    assert cache.find("host/p:1") is None


def test_a_signature_stays_as_long_as_its_publish(tmp_path):
    writer = LayoutWriter(tmp_path)
    cache = ArtifactCache(tmp_path)
    with cache.writing(print, 10):
        entry, _ = kept(cache, writer, 0)
        signature = writer.manifest({}, {"id": "s"}, [writer.blob(b"payload")])
        tag = f"{entry.digest.replace(':', '-')}.sig"
        descriptor = Descriptor("", signature["digest"], signature["size"], {})
        cache.keep({"host/p:0": entry, f"host/p:{tag}": descriptor})
        for number in range(1, 4):
            kept(cache, writer, number)
        assert cache.tagged(tag).digest == descriptor.digest
        kept(cache, writer, 4)
        assert cache.tagged(tag) is None

    assert not (tmp_path / "blobs" / "sha256" / sha256(b"payload")).exists()


def test_a_moved_tag_lets_the_old_publish_go(tmp_path):
    writer = LayoutWriter(tmp_path)
    cache = ArtifactCache(tmp_path)
    with cache.writing(print, 10):
        _, old = kept(cache, writer, 0)
        manifest = writer.manifest({"m": b"new"})
        cache.keep({"host/p:0": Descriptor("", manifest["digest"], manifest["size"], {})})

    assert not (tmp_path / "blobs" / "sha256" / old).exists()
    assert cache.find("host/p:0").digest == manifest["digest"]


def test_writers_wait_for_one_another(tmp_path):
    cache = ArtifactCache(tmp_path)
    with cache.writing(print, 10):
        pass
    holder = os.open(tmp_path / "lock", os.O_RDWR)
    fcntl.flock(holder, fcntl.LOCK_EX)
    told = threading.Event()
    entered = threading.Event()

    def write():
        with cache.writing(lambda line: told.set(), 10):
            entered.set()

    writer = threading.Thread(target=write)
    writer.start()
    assert told.wait(60)
    assert not entered.is_set()
    os.close(holder)
    writer.join(timeout=60)
    assert entered.is_set()


def test_a_writer_does_not_wait_for_ever(tmp_path):
    first, second = ArtifactCache(tmp_path), ArtifactCache(tmp_path)

    with (
        first.writing(print, 10),
        pytest.raises(FetchError, match=r"another process writes to .* within 0 s"),
        second.writing(print, 0),
    ):
        pass
