"""Execution providers: which hardware ONNX Runtime is asked for, and whether it really took it.

ONNX Runtime falls back to the CPU without a word when a GPU's libraries are missing; an engine that
was told to use a GPU must not. So the provider is checked before and after a session is made.
"""

import onnxruntime as ort

from engine.errors import StartupError

__all__ = ["CPU", "check_provider", "choose_providers"]

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"


def choose_providers(accelerator: str) -> tuple[str, ...]:
    """Execution providers in order of preference.

    Args:
        accelerator: ``auto``, ``cpu`` or ``cuda``, as in ``ACCELERATOR``.

    Returns:
        Provider names; the CPU is always the last.

    Raises:
        StartupError: ``cuda`` was asked for and this installation has no such provider.
    """
    available = ort.get_available_providers()
    if accelerator == "cuda" and CUDA not in available:
        raise StartupError(
            "ACCELERATOR=cuda, but this onnxruntime has no CUDA provider (it has "
            f"{', '.join(available)}): install sagitta[gpu], or use the GPU image"
        )
    if accelerator in {"auto", "cuda"} and CUDA in available:
        ort.preload_dlls()
        return (CUDA, CPU)
    return (CPU,)


def check_provider(accelerator: str, provider: str, model: str) -> None:
    """Refuse a session that fell back to the CPU although a GPU was asked for.

    Args:
        accelerator: As in ``ACCELERATOR``.
        provider: What the session really uses.
        model: The model's name.

    Raises:
        StartupError: ``cuda`` was asked for and the session runs elsewhere.
    """
    if accelerator == "cuda" and provider != CUDA:
        raise StartupError(
            f"ACCELERATOR=cuda, but model {model!r} would run on {provider}: the GPU, its driver "
            "or the CUDA libraries cannot be used (was the container started with --gpus all?)"
        )
