"""An artifact in a registry, brought blob by blob into the cache.

Rules that hold here:
- What the cache holds whole is not fetched again; what it holds damaged is.
- Nothing leaves here that does not lie, verified, in the cache.
"""

from dataclasses import replace
from pathlib import Path

from engine.publish.artifact import FetchError, Progress, Report
from engine.publish.cache import ArtifactCache
from engine.publish.credentials import RegistryAccess
from engine.publish.layout import expect_small
from engine.publish.manifest import Descriptor
from engine.publish.reference import RegistryReference
from engine.publish.registry import RegistryClient
from engine.publish.sockets import unreachable_reason

__all__ = ["RemoteSource", "connect"]


def connect(
    reference: RegistryReference, access: RegistryAccess, report: Report, *, may_wait: bool
) -> RegistryClient:
    """Reach the registry and, where there are credentials, log in.

    Args:
        reference: What is going to be pulled.
        access: Credentials and trust.
        report: Takes the documented ``Login Succeeded``.
        may_wait: False gives up soon, since the cache holds the artifact.

    Returns:
        A client for the repository.

    Raises:
        FetchError: It is not in reach, or refuses the credentials.
    """
    if not may_wait:
        access = replace(access, limits=access.limits.hasty())
        reason = unreachable_reason(
            reference.registry, is_plain=access.plain_http, timeout_s=access.limits.connect_s
        )
        if reason is not None:
            raise FetchError(f"{reference.registry} is not in reach ({reason})")
    if access.credentials is not None and access.is_for_another(reference):
        report(
            f"OCI_USERNAME is for {access.registry}, so that {reference.registry} is not given it"
        )
    client = RegistryClient(reference, access)
    if client.credentials is not None:
        client.log_in()
        report("Login Succeeded")
    return client


class RemoteSource:
    """The blobs of one repository, through the cache; a ``BlobSource``. The lock is held."""

    def __init__(
        self,
        client: RegistryClient,
        cache: ArtifactCache,
        reference: RegistryReference,
        progress: Progress,
    ) -> None:
        self.signatures: dict[str, Descriptor] = {}
        self._client = client
        self._cache = cache
        self._reference = reference
        self._progress = progress
        self._brought: set[str] = set()

    def resolve(self) -> Descriptor:
        """What the reference names now: by its digest when it has one, else by its tag.

        Raises:
            FetchError: The registry has no such manifest, or does not send it.
        """
        entry = self._named(self._reference.digest or self._reference.tag or "")
        if entry is None:
            raise FetchError(f"{self._reference} is not in the registry (HTTP 404)")
        return entry

    def tagged(self, tag: str) -> Descriptor | None:
        """A manifest beside the artifact; the cache will keep it together with the artifact."""
        entry = self._named(tag)
        if entry is not None:
            name = f"{self._reference.registry}/{self._reference.repository}:{tag}"
            self.signatures[name] = entry
        return entry

    def manifest(self, entry: Descriptor) -> bytes:
        """The bytes of a manifest or index, from the cache or by digest from the registry."""
        expect_small(entry)
        if not self._holds(entry):
            found = self._named(entry.digest)
            if found is None or found.size_bytes != entry.size_bytes:
                raise FetchError(f"{entry.digest}: the registry has no such manifest of its size")
        return self._cache.read(entry)

    def read(self, blob: Descriptor) -> bytes:
        """The bytes of a small blob."""
        expect_small(blob)
        self.fetch(blob)
        return self._cache.read(blob)

    def path(self, digest: str) -> Path:
        """Where a blob lies once it is fetched."""
        return self._cache.path(digest)

    def fetch(self, blob: Descriptor) -> None:
        """Bring a blob of any size, unless the cache holds it whole.

        Raises:
            FetchError: The registry does not send it, or sends something else.
        """
        if blob.digest in self._brought or self._holds(blob):
            return
        with self._cache.receive(blob, self._brought) as file:
            while True:
                was_resumed = file.size_bytes > 0
                self._client.blob(
                    blob, file, lambda done: self._progress(blob.digest, done, blob.size_bytes)
                )
                if file.digest == blob.digest:
                    break
                found = file.digest
                file.restart()
                if not was_resumed:
                    raise FetchError(
                        f"{self._client.named(blob.digest)}: the registry sent the content of "
                        f"{found}; it is damaged or was changed"
                    )
            file.commit()
        self._brought.add(blob.digest)

    def _named(self, name: str) -> Descriptor | None:
        """Fetch a manifest by tag or digest and store it."""
        found = self._client.manifest(name)
        if found is None:
            return None
        entry, document = found
        if not self._holds(entry):
            with self._cache.receive(entry, self._brought) as file:
                file.restart()
                file.write(document)
                file.commit()
        self._brought.add(entry.digest)
        return entry

    def _holds(self, blob: Descriptor) -> bool:
        """Whether the cache holds a blob; a damaged one is fetched again."""
        try:
            self._cache.fetch(blob)
        except FetchError:
            return False
        self._brought.add(blob.digest)
        return True
