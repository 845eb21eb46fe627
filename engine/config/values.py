"""The types of configuration values that the standard library does not have.

Rule: a secret leaves its object only through ``Secret.reveal``, called where it is spent.
"""

import dataclasses
import enum
import hmac
from collections.abc import Mapping
from typing import NoReturn

__all__ = ["Accelerator", "EdgeBundle", "InferenceResponse", "Secret"]

REPLACEMENT_TOKEN = "omitted_for_replace"  # noqa: S105  # a documented word, not a token


class Accelerator(enum.StrEnum):
    """Which hardware runs the models."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class InferenceResponse(enum.StrEnum):
    """Which body ``/infer`` answers when the request does not say."""

    LEGACY = "legacy"
    RECORDS = "records"


class Secret:
    """A text that prints as ``<secret>``, whoever formats it and however.

    It cannot be pickled, because a pickle is where a log handler or a crash report would keep it,
    and it has no hash, because a hash would tell two secrets apart.
    """

    __slots__ = ("_text",)
    __hash__ = None  # type: ignore[assignment]  # comparing is what == is for

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """Return the text; call it only where the secret is sent to its owner."""
        return self._text

    def __eq__(self, other: object) -> bool:
        """Compare in a time that does not depend on where the texts differ."""
        if not isinstance(other, Secret):
            return NotImplemented
        mine, theirs = (
            secret.reveal().encode("utf-8", "surrogateescape") for secret in (self, other)
        )
        return hmac.compare_digest(mine, theirs)

    def __repr__(self) -> str:
        return "<secret>"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a Secret is never pickled or copied; pass the object itself")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EdgeBundle:
    """The decoded ``EDGE_BUNDLE``: who this edge is and how it joins its operations centre.

    Attributes:
        edge_name: Name of the edge, and so of its log partition; unique in its operations centre.
        join_token: One-time token, or the documented word of a replacement bundle.
        opscenter_host: Host of the operations centre; may have a port and a path.
        variables: Every other pair of the bundle, unknown names included, as plain text.
    """

    edge_name: str
    join_token: Secret
    opscenter_host: str
    variables: Mapping[str, str] = dataclasses.field(default_factory=dict, repr=False)

    @property
    def is_replacement(self) -> bool:
        """Whether this bundle replaces a publish on an edge that has joined before."""
        return self.join_token == Secret(REPLACEMENT_TOKEN)

    def __str__(self) -> str:
        return f"<edge {self.edge_name!r} of {self.opscenter_host!r}>"
