"""Fills holes in photos on a web page.

`python -m spn_jax.demo [--checkpoint DIR]` prints the address to open. The server listens at this
machine's loopback address unless --host says otherwise. Photos stay in its memory and are not
stored elsewhere. Ctrl-C stops it. `--model FILE.onnx` instead of --checkpoint fills with the
network of that file. The page /docs on the same server describes the requests by which programs use
it.
"""

import argparse
import contextlib
import dataclasses
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spn_jax.config import Config
from spn_jax.demo.limits import PATIENCE, Limits
from spn_jax.errors import InputError, run_command
from spn_jax.filling.options import add_device, add_network, check_network, network_path


def main(arguments: Sequence[str]) -> None:
    options = parse(arguments)
    check_network(options)
    limits = limits_of(options)
    # After the options are read: importing JAX takes seconds.
    from spn_jax.runtime.device import choose_device, set_up

    set_up()
    choose_device(options.device)
    # opened before the checkpoint is read, which takes longer
    with listen(options.host, options.port) as open_socket:
        app = create(options, limits)
        print(f"open {address(options.host, open_socket)} in a browser; Ctrl-C stops", flush=True)
        serve(app, open_socket, limits.connections)
    print("stopped", flush=True)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m spn_jax.demo", description=__doc__, epilog=PATIENCE)
    add_network(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at; 0.0.0.0 lets other machines in, without any password")
    parser.add_argument("--port", type=int, default=7860, help="0 takes a free one")
    parser.add_argument("--allow-host", action="append", default=[], metavar="NAME", help="a further name by which browsers may ask")
    parser.add_argument("--root-path", default="", metavar="/PREFIX", help="the prefix under which a proxy shows the page")
    add_device(parser)
    default = Limits()
    for name, what in (
        ("megabytes", "of one request, a photo and its mask"),
        ("megapixels", "million pixels of a photo"),
        ("samples", "completions of one request (probabilistic models)"),
        ("windows", "passes of the network for one request: parts of the hole times completions"),
        ("minutes", "that the network works for one request"),
        ("waiting", "requests that wait while another one is filled; more are refused"),
        ("uploads", "requests whose files are being received; more are refused"),
        ("upload-megabytes", "of files that are being received, all together"),
        ("connections", "open connections"),
        ("keep-minutes", "that photos and results are kept after their last use"),
        ("keep-megabytes", "of memory for them; the longest unused make room"),
        ("keep-items", "photos and results that are kept"),
    ):
        value = getattr(default, name.replace("-", "_"))
        parser.add_argument(f"--{name}", type=int, default=value, metavar="N", help=f"{what} (at most; {value})")
    return parser.parse_args(arguments)


def limits_of(options: argparse.Namespace) -> Limits:
    return Limits(**{field.name: getattr(options, field.name) for field in dataclasses.fields(Limits)})


def listen(host: str, port: int) -> socket.socket:
    """Opens a socket. Raises InputError if the address is another machine's or taken."""
    if not 0 <= port < 2**16:
        raise InputError(f"--port {port} must lie between 0 and {2**16 - 1}")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        reason = error.strerror or error
        raise InputError(
            f"cannot listen on {host}:{port} ({reason}); stop the program that uses it, or choose another --port or --host"
        ) from error


def create(options: argparse.Namespace, limits: Limits) -> Any:
    """Creates the Starlette application with its model. Raises InputError if the extra is not
    installed, or there is no such checkpoint.
    """
    try:
        from spn_jax.demo.app import Settings, create_app
    except ModuleNotFoundError as error:
        raise InputError(f"the page needs {error.name}, which is not installed; run pip install -e '.[web]' in the checkout") from error
    from spn_jax.filling.inpainter import Inpainter
    from spn_jax.filling.windows import LARGEST

    inpainter = Inpainter.load(network_path(options))
    config = inpainter.config
    settings = Settings(
        describe(config) if options.model is None else Path(options.model).name,
        config.model.variational,
        options.host,
        tuple(options.allow_host),
        limits,
        root_path=root_path(options.root_path),
        longest_original=LARGEST * config.data.image_size,
    )
    return create_app(inpainter, settings)


def root_path(given: str) -> str:
    """Normalises a prefix of paths to "" or "/PREFIX", without a slash at its end. Raises
    InputError if it does not begin with a slash.
    """
    if given and not given.startswith("/"):
        raise InputError(f"--root-path {given} must begin with a slash, as in /{given}")
    return given.rstrip("/")


def describe(config: Config) -> str:
    """Describes the model for the page."""
    kind = "probabilistic " if config.model.variational else ""
    return f"{kind}SPN, trained at {config.data.image_size} x {config.data.image_size} pixels"


def address(host: str, open_socket: socket.socket) -> str:
    """Returns the address to type into a browser on this machine."""
    shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://{f'[{shown}]' if ':' in shown else shown}:{open_socket.getsockname()[1]}/"


def serve(app: Any, open_socket: socket.socket, connections: int) -> None:
    """Serves until Ctrl-C or SIGTERM. The network's current pass is finished unless a second Ctrl-C
    comes.
    """
    from spn_jax.demo.connections import server

    # uvicorn shuts down in order and then sends itself the signal once more.
    with contextlib.suppress(KeyboardInterrupt):
        server(app, connections).run(sockets=[open_socket])


def cli() -> None:
    """Runs the console command `spn-demo`."""
    run_command(main)


if __name__ == "__main__":
    cli()
