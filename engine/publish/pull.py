"""Opening the pipeline that ``PIPELINE_URL`` names, wherever it lies."""

from engine.errors import StartupError
from engine.publish.artifact import Artifact, ReadModels, Report
from engine.publish.directory import open_directory
from engine.publish.layout import open_layout
from engine.publish.reference import DirectoryReference, LayoutReference, Reference

__all__ = ["open_artifact"]


def open_artifact(reference: Reference, *, read_models: ReadModels, report: Report) -> Artifact:
    """Find and verify a published pipeline.

    Args:
        reference: From ``parse_reference``.
        read_models: Reads the definition and yields its models; it runs before any layer is
            fetched, so that a definition that cannot be run costs no download.
        report: Takes the documented start-up lines (reference page, "Edge Deployment").

    Returns:
        The artifact, every byte verified.

    Raises:
        StartupError: It cannot be found, read or trusted.
    """
    match reference:
        case LayoutReference():
            return open_layout(reference, read_models=read_models, report=report)
        case DirectoryReference():
            return open_directory(reference, read_models=read_models, report=report)
        case _:
            raise StartupError(f"{reference}: this build does not pull from registries")
