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

    from distill_tune.serve.load import AnyTeacher

    # The teacher, where and in what it runs, its name, and what else its word depends on.
    _Opened = tuple[AnyTeacher, torch.device, torch.dtype, str, str]

_DESCRIPTION = """Serve a teacher over HTTP to runs whose teacher_model is distill_tune.teachers.Served.

  distill-tune serve --teacher models/Qwen3-8B --port 8000
  distill-tune serve --teacher models/SmolLM2-1.7B-Q4_0.gguf --port 8000
  distill-tune serve --teacher models/Qwen3-8B --quantizer distill_tune.teachers.NF4 --port 8000
  distill-tune serve --config mine.yaml --port 8000 [key=value ...]

--teacher is a model's folder, an adapter's, or a GGUF file; what only transformers can run, it runs. --config serves
the teacher that a config trains with: its teacher_model, also a mixture of several, with teacher_checkpointer,
teacher_dtype, teacher_quantizer, teacher_offload and device; its student and rows need not be here. The server listens
on this machine alone unless --host names another address, which takes a token: --token, or better the environment
variable DISTILL_TUNE_SERVE_TOKEN, which a list of processes does not show. It speaks plain HTTP; between machines that
others reach, put it behind a tunnel (`ssh -L 8000:localhost:8000 machine`) or a proxy with TLS.

It needs starlette and uvicorn: pip install 'distill-tune[serve]'.
"""
TOKEN = "DISTILL_TUNE_SERVE_TOKEN"
_OF_TEACHER = ("quantizer", "offload", "trust_remote_code")
_SECONDS_TO_END = 30  # for the requests under way


def add_parser(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "serve",
        help="serve a teacher to runs on other machines",
        description=_DESCRIPTION,
        usage="distill-tune serve (--teacher MODEL | --config CONFIG [key=value ...]) --port PORT [options]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--teacher", type=local_path, help="a model's folder, or a GGUF file")
    parser.add_argument("--config", help="serve this config's teacher")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="in place of what the config says")
    parser.add_argument("--port", type=int, help="0 takes one that is free, and tells it")
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on (default: 127.0.0.1)")
    parser.add_argument("--token", help=f"that requests must bear (default: ${TOKEN})")
    parser.add_argument("--device", help="cpu, cuda, cuda:N, mps or auto (default: the config's, or auto)")
    parser.add_argument(
        "--dtype",
        choices=("bf16", "fp32"),
        help="default: the config's; without one bf16 on GPUs that compute in it, else fp32",
    )
    parser.add_argument("--quantizer", help="torchao's config for its weights, or distill_tune.teachers.NF4")
    parser.add_argument("--offload", action="store_true", help="keep its layers in host memory")
    parser.add_argument("--trust-remote-code", action="store_true", help="run the folder's own Python code")
    parser.add_argument(
        "--max-tokens-per-batch", type=int, default=16384, help="of a forward pass (default: 16384)", metavar="N"
    )
    parser.add_argument(
        "--max-tokens-per-request", type=int, default=262144, help="larger ones are refused (default: 262144)"
    )
    parser.set_defaults(function=lambda options: _serve(parser.parse_intermixed_args(options.arguments)))


def _serve(options: argparse.Namespace) -> None:
    if bool(options.teacher) == bool(options.config):
        raise UserError("serve: name one teacher: --teacher MODEL, or --config CONFIG")
    if options.port is None:
        raise UserError("--port: missing; 0 takes one that is free, and tells it")
    _require_packages()
    token = _token(options)
    for name in ("max_tokens_per_batch", "max_tokens_per_request"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(options, name)}: must be at least 1")
    if options.config and (given := [name for name in _OF_TEACHER if getattr(options, name)]):
        raise UserError(f"--{given[0].replace('_', '-')}: --config says how its teacher is loaded; override its keys")
    if options.teacher and options.overrides:
        raise UserError(f"{options.overrides[0]}: settings are a config's; name one with --config, or take the options")
    with _bound(options.host, options.port) as listening:  # before minutes are spent on the weights
        from distill_tune.serve.run import run, stoppable

        with stoppable() as stop:
            run(_application(options, token), listening, stop, _SECONDS_TO_END)
        print(f"stopped by {stop.name}", flush=True)


def _application(options: argparse.Namespace, token: str | None) -> tuple[Any, str]:
    """The application and what is told when it listens."""
    from distill_tune.serve.run import loaded

    teacher, device, dtype, name, settings = (_of_config if options.config else _of_model)(options)
    return loaded(
        teacher,
        device,
        dtype,
        name=name,
        settings=settings,
        token=token,
        most_tokens_of_batch=options.max_tokens_per_batch,
        most_tokens_of_request=options.max_tokens_per_request,
    )


def _of_model(options: argparse.Namespace) -> "_Opened":
    from distill_tune.cli.compare import dtype_for
    from distill_tune.teachers.from_path import open_model
    from distill_tune.training import find_device, find_dtype

    device = find_device(options.device or "auto")
    dtype = find_dtype(options.dtype, device) if options.dtype else dtype_for(device)
    teacher = open_model(
        "--teacher", options.teacher, dtype, options.quantizer, options.offload, options.trust_remote_code
    )
    return teacher, device, dtype, options.teacher.name, f"{options.quantizer}"


def _of_config(options: argparse.Namespace) -> "_Opened":
    from distill_tune.serve.load import config_of_teacher, name_of, settings_of, teacher_of
    from distill_tune.training import find_device, find_dtype

    cfg = config_of_teacher(options.config, options.overrides)
    device = find_device(options.device or cfg.device)
    dtype = find_dtype(options.dtype or cfg.get("teacher_dtype") or cfg.dtype, device)
    return teacher_of(cfg, dtype), device, dtype, name_of(cfg), settings_of(cfg)


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
