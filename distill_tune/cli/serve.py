"""`distill-tune serve`: a teacher on this machine for runs on others."""

import argparse
import ipaddress
import os
import socket
from typing import TYPE_CHECKING, Any

from distill_tune.config.files import local_path
from distill_tune.errors import UserError

if TYPE_CHECKING:
    import torch

_DESCRIPTION = """Serve a teacher over HTTP to runs whose teacher_model is distill_tune.teachers.Served.

  distill-tune serve --teacher models/Qwen3-8B --port 8000
  distill-tune serve --teacher models/SmolLM2-1.7B-Q4_0.gguf --port 8000
  distill-tune serve --teacher models/Qwen3-8B --quantizer distill_tune.teachers.NF4 --port 8000

--teacher is a model's folder, an adapter's, or a GGUF file; what only transformers can run, it runs. The server listens
on this machine alone unless --host names another address, which takes a token: --token, or better the environment
variable DISTILL_TUNE_SERVE_TOKEN, which a list of processes does not show. It speaks plain HTTP; between machines that
others reach, put it behind a tunnel (`ssh -L 8000:localhost:8000 machine`) or a proxy with TLS.

It needs starlette and uvicorn: pip install 'distill-tune[serve]'.
"""
TOKEN = "DISTILL_TUNE_SERVE_TOKEN"
_SECONDS_TO_END = 30  # for the requests under way


def add_parser(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "serve",
        help="serve a teacher to runs on other machines",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--teacher", required=True, type=local_path, help="a model's folder, or a GGUF file")
    parser.add_argument("--port", required=True, type=int, help="0 takes one that is free, and tells it")
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on (default: 127.0.0.1)")
    parser.add_argument("--token", help=f"that requests must bear (default: ${TOKEN})")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:N, mps or auto (default)")
    parser.add_argument("--dtype", choices=("bf16", "fp32"), help="default: bf16 on GPUs that compute in it, else fp32")
    parser.add_argument("--quantizer", help="torchao's config for its weights, or distill_tune.teachers.NF4")
    parser.add_argument("--offload", action="store_true", help="keep its layers in host memory")
    parser.add_argument("--trust-remote-code", action="store_true", help="run the folder's own Python code")
    parser.add_argument(
        "--max-tokens-per-batch", type=int, default=16384, help="of a forward pass (default: 16384)", metavar="N"
    )
    parser.add_argument(
        "--max-tokens-per-request", type=int, default=262144, help="larger ones are refused (default: 262144)"
    )
    parser.set_defaults(function=_serve)


def _serve(options: argparse.Namespace) -> None:
    _require_packages()
    token = _token(options)
    for name in ("max_tokens_per_batch", "max_tokens_per_request"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(options, name)}: must be at least 1")
    with _bound(options.host, options.port) as listening:  # before minutes are spent on the weights
        from distill_tune.cli.compare import dtype_for
        from distill_tune.serve.run import run, stoppable
        from distill_tune.training import find_device, find_dtype

        device = find_device(options.device)
        dtype = find_dtype(options.dtype, device) if options.dtype else dtype_for(device)
        with stoppable() as stop:
            run(_application(options, device, dtype, token), listening, stop, _SECONDS_TO_END)
        print(f"stopped by {stop.name}", flush=True)


def _application(
    options: argparse.Namespace, device: "torch.device", dtype: "torch.dtype", token: str | None
) -> tuple[Any, str]:
    """The application and what is told when it listens."""
    from distill_tune.serve.load import open_teacher
    from distill_tune.serve.run import loaded

    teacher = open_teacher(options.teacher, dtype, options.quantizer, options.offload, options.trust_remote_code)
    return loaded(
        teacher,
        device,
        dtype,
        name=options.teacher.name,
        settings=f"{options.quantizer}",
        token=token,
        most_tokens_of_batch=options.max_tokens_per_batch,
        most_tokens_of_request=options.max_tokens_per_request,
    )


def _require_packages() -> None:
    import importlib.util

    if lacking := [name for name in ("starlette", "uvicorn") if importlib.util.find_spec(name) is None]:
        raise UserError(f"serve: needs the package {lacking[0]}; pip install 'distill-tune[serve]'")


def _token(options: argparse.Namespace) -> str | None:
    """
    Raises:
        UserError: others than this machine could ask without one.
    """
    token = options.token or os.environ.get(TOKEN) or None
    if token is not None and not (token.isascii() and token.isprintable() and " " not in token):
        raise UserError("--token: must be of printable ASCII characters, without spaces")
    if token is None and not _is_loopback(options.host):
        raise UserError(f"--host {options.host}: other machines could ask; give a token, --token or ${TOKEN}")
    return token


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _bound(host: str, port: int) -> socket.socket:
    """
    Raises:
        UserError: it cannot be listened on.
    """
    if not 0 <= port <= 65535:
        raise UserError(f"--port {port}: must be from 0 to 65535")
    try:
        (family, kind, protocol, _, address), *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except OSError as error:
        raise UserError(f"--host {host} --port {port}: {error.strerror or error}; take another port") from error
    return listening
