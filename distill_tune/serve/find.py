"""Which engine answers at an address."""

from http.client import RemoteDisconnected

from distill_tune.errors import UserError
from distill_tune.serve import own, sglang, vllm
from distill_tune.serve.connection import NoAnswer, Refused, Server, Unreachable
from distill_tune.serve.engine import Engine
from distill_tune.serve.own import DistillTune
from distill_tune.serve.sglang import SGLang
from distill_tune.serve.vllm import VLLM

ENGINES = (own.NAME, vllm.NAME, sglang.NAME)
_NOT_THERE = 404
_STARTED_BY = {
    own.NAME: "distill-tune serve",
    vllm.NAME: "vllm serve MODEL",
    sglang.NAME: "python -m sglang.launch_server --model-path MODEL",
}
_OF_CLIENTS = "/v1"  # with which clients of OpenAI's form write an address


class NoServer(UserError):
    """None answers at an address."""


def find_engine(server: Server, engine: str, model: str | None) -> Engine:
    """
    Args:
        engine: its name, or ``auto``.
        model: of those that the server serves; None where there is one.

    Raises:
        NoServer: there is none.
        UserError: it is another kind of server, wants another token, or does not serve that model.
    """
    told = f"url={server.url}"
    found: list[str] = []
    names = ENGINES if engine == "auto" else (engine,)
    for name in names:
        try:
            if name == own.NAME:
                return DistillTune(server)
            return VLLM(server, model) if name == vllm.NAME else SGLang(server, model)
        except Refused as error:
            if error.status in (401, 403):
                raise UserError(f"{told}: wants another token, or one ({error}); set token") from error
            if error.status != _NOT_THERE:
                raise UserError(f"{told}: {error}") from error
            found.append(f"{name}: {error}")
        except Unreachable as error:
            asks_tls = isinstance(error.__cause__, RemoteDisconnected) and server.url.startswith("http:")
            what = "is it one of https?" if asks_tls else f"start one: {_STARTED_BY.get(engine, _STARTED_BY[own.NAME])}"
            raise NoServer(f"{told}: no server answers ({error}); {what}") from error
        except NoAnswer as error:
            found.append(f"{name}: {error}")
    if server.url.endswith(_OF_CLIENTS):
        raise UserError(f"{told}: leave {_OF_CLIENTS} out")
    raise UserError(f"{told}: is none of {', '.join(names)} ({'; '.join(found)})")
