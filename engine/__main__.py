"""The ``sagitta`` command.

Rules that hold here:
- The only reader of the process environment; everything else is passed what it needs.
- A subcommand's module is imported when that subcommand runs, so that none pays for another.
- Exit codes: 0 stopped as asked, 1 a bug, 2 bad usage or configuration, 3 cannot start; 130 for a
  command that was interrupted before its end.
- What is written on the way out has every secret taken out of it.
"""

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from engine import __version__
from engine.errors import ConfigError, StartupError

__all__ = ["main"]

EXIT_BUG = 1
EXIT_BAD_CONFIGURATION = 2
EXIT_CANNOT_START = 3
EXIT_INTERRUPTED = 130  # 128 and SIGINT, as shells count
SECRET_VARIABLES = ("EDGE_BUNDLE", "OCI_PASSWORD")


class Command(NamedTuple):
    """A subcommand: ``module:function`` taking (arguments, environ) and returning the exit code."""

    target: str
    help: str


COMMANDS = {
    "serve": Command("engine.__main__:serve", "serve the published pipeline"),
    "publish": Command("engine.commands.publish:run", "publish ONNX models as a pipeline"),
    "pull": Command("engine.commands.pull:run", "fetch a publish, for later or for elsewhere"),
    "inspect": Command("engine.commands.inspect:run", "show what a publish holds"),
    "logs": Command("engine.commands.logs:run", "read the inference log"),
}


class _NoPandas:
    """A finder of modules that says that pandas is not installed.

    pyarrow imports it, where it is installed, for the first array that it makes of a list: 0.25 s
    and 34 MiB, in the middle of a request. Nothing here wants a data frame.
    """

    @staticmethod
    def find_spec(name: str, _path: object = None, _target: object = None) -> None:
        """Refuse pandas; leave every other module to the finders behind."""
        if name == "pandas":
            raise ModuleNotFoundError("the engine makes no use of pandas", name=name)


def main(argv: Sequence[str] | None = None, environ: Mapping[str, str] | None = None) -> int:
    """Run one subcommand.

    Args:
        argv: Arguments after the command's name; those of the process when None.
        environ: The environment; that of the process when None.

    Returns:
        The exit code.
    """
    # ONNX Runtime 1.31 keeps a device id and a database of usage in the home folder unless told so.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    if _NoPandas not in sys.meta_path:
        sys.meta_path.insert(0, _NoPandas)
    environ = os.environ if environ is None else environ
    arguments = _parser().parse_args(argv)
    try:
        return _load(COMMANDS[arguments.command].target)(arguments.rest, environ)
    except ConfigError as error:
        return _fail(EXIT_BAD_CONFIGURATION, str(error), environ)
    except StartupError as error:
        return _fail(EXIT_CANNOT_START, str(error), environ)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # nobody reads any more, as behind `head`: nothing is left to say
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_INTERRUPTED
    except Exception:  # noqa: BLE001  # the top of the process: report the bug and end
        import traceback  # noqa: PLC0415  # 5 ms that only a bug pays

        return _fail(EXIT_BUG, traceback.format_exc(), environ)


def serve(arguments: Sequence[str], environ: Mapping[str, str]) -> int:
    """Run ``sagitta serve``: environment to configuration, configuration to a running engine.

    Args:
        arguments: Only ``--help``; the environment is the interface.
        environ: The environment.

    Returns:
        The exit code of the engine.

    Raises:
        ConfigError: The configuration cannot be used.
        StartupError: The engine cannot start.
    """
    from engine.config import EngineConfig, help_table  # noqa: PLC0415
    from engine.edge.bundle import decode_bundle  # noqa: PLC0415
    from engine.process import allow_open_files, keep_freed_memory  # noqa: PLC0415
    from engine.publish.credentials import credential_files  # noqa: PLC0415

    asks_help = bool({"-h", "--help"} & set(arguments))  # the table takes 1 ms to lay out
    parser = argparse.ArgumentParser(
        prog="sagitta serve",
        description="Serve the published pipeline. Everything is set with environment variables.",
        epilog=f"variables:\n{help_table()}" if asks_help else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.parse_args(arguments)
    config = EngineConfig.from_environ(environ, decode_bundle=decode_bundle)
    allow_open_files()
    keep_freed_memory(environ)
    return _load("engine.app:serve")(config, credential_files(environ))


def _parser() -> argparse.ArgumentParser:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.help}" for name, command in COMMANDS.items()]
    parser = argparse.ArgumentParser(
        prog="sagitta",
        description="Arrow-native edge inference engine.",
        epilog="\n".join(["commands:", *lines, "", "`sagitta COMMAND --help` says more."]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"sagitta {__version__}")
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="see below")
    # not required: alone, argparse would ask for it by this name
    parser.add_argument("rest", nargs=argparse.REMAINDER, help=argparse.SUPPRESS).required = False
    return parser


def _load(target: str) -> Callable[..., int]:
    module, _, function = target.partition(":")
    loaded: Callable[..., int] = getattr(importlib.import_module(module), function)
    return loaded


def _fail(exit_code: int, text: str, environ: Mapping[str, str]) -> int:
    for secret in sorted(_secrets(environ), key=len, reverse=True):
        for form in (secret, repr(secret)[1:-1]):  # as it is, and as an exception quotes it
            text = text.replace(form, "<secret>")
    sys.stderr.write(f"sagitta: {text.rstrip()}\n")
    return exit_code


def _secrets(environ: Mapping[str, str]) -> Iterator[str]:
    """Yield the secret texts of the environment, those inside the bundle included."""
    from engine.edge.bundle import decode_bundle  # noqa: PLC0415

    yield from (environ[name] for name in SECRET_VARIABLES if environ.get(name))
    try:
        bundle = decode_bundle(environ.get("EDGE_BUNDLE", ""))
    except ConfigError:
        return
    yield bundle.join_token.reveal()
    yield from (bundle.variables[name] for name in SECRET_VARIABLES if bundle.variables.get(name))


if __name__ == "__main__":
    sys.exit(main())
