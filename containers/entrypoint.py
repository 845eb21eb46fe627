"""First process of the image: gives the engine its volume, becomes an ordinary user, serves.

Rules that hold here:
- ``docker run -v ./data:/persist`` makes a folder of root's. As root this file hands the folder to
  uid 10001 and becomes that user before anything of the engine is imported. Started as any other
  user, or as a root without capabilities, it changes nothing. The engine says itself where it
  cannot write.
- The engine runs in this very process, so that it is PID 1 and every signal reaches it. Until it
  has handlers of its own a SIGTERM ends the process with 0; PID 1 would ignore it otherwise.
- Run with ``-I``: no variable and no folder of the caller decides what root imports.
"""

import os
import signal
import sys

ENGINE_ID = 10001
DEFAULT_PERSIST_DIR = "/persist"


def give_away(folder: str) -> None:
    """Make ``folder`` and all that is in it the engine's; a symbolic link is never followed."""
    for _, folders, files, descriptor in os.fwalk(folder, follow_symlinks=False):
        for name in (".", *folders, *files):
            status = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
            if status.st_uid != ENGINE_ID:
                os.chown(name, ENGINE_ID, ENGINE_ID, dir_fd=descriptor, follow_symlinks=False)


def is_mounted(folder: str) -> bool:
    """Whether a volume is mounted there; ``os.path.ismount`` misses one of the same file system."""
    wanted = os.path.realpath(folder)
    with open("/proc/self/mountinfo") as mounts:
        return any(line.split()[4].replace("\\040", " ") == wanted for line in mounts)


def become_ordinary() -> None:
    """Give the volume away and drop every privilege.

    A volume that cannot be given away (read-only, a network file system) is no reason to stay root.
    """
    folder = os.environ.get("PERSIST_DIR") or DEFAULT_PERSIST_DIR
    try:
        # A folder of the image itself is the image's business: only what was mounted changes hands.
        if is_mounted(folder):
            give_away(folder)
    except OSError as error:
        sys.stderr.write(
            f"{folder} could not be given to uid {ENGINE_ID} ({error}): where that user may not "
            f"write there, run `chown -R {ENGINE_ID}:{ENGINE_ID}` on its folder on the host\n"
        )
    try:
        os.setgroups([])
        os.setgid(ENGINE_ID)
        os.setuid(ENGINE_ID)
    except OSError as error:
        sys.stderr.write(
            f"running as uid {os.geteuid()}, since it could not be changed ({error}): "
            f"start with `--user {ENGINE_ID}`\n"
        )


def stop_early(_signal: int, _frame: object) -> None:
    """End at once: asked to stop before the engine had begun."""
    os._exit(0)


def main() -> None:
    """Become an ordinary user, then run the command line as ``sagitta`` would."""
    signal.signal(signal.SIGTERM, stop_early)
    if os.geteuid() == 0:
        become_ordinary()
    from engine.__main__ import main as sagitta  # noqa: PLC0415 - never as root

    sys.argv[0] = "sagitta"
    sys.exit(sagitta())


if __name__ == "__main__":
    main()
