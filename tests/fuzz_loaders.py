"""Feeds the loaders with broken configs, rows, models' folders and checkpoints until the time is up.

    python tests/fuzz_loaders.py --minutes 60 --seed 1

A loader may succeed or raise UserError; anything else is a finding, kept in --findings with what was read, and told.
"""

import argparse
import collections
import contextlib
import copy
import hashlib
import io
import json
import os
import random
import resource
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow
import pyarrow.parquet
import yaml
from omegaconf import OmegaConf
from tiny import ROWS, VOCAB_SIZE, write_model, write_tokenizer

from distill_tune import data, models
from distill_tune.config.check import checked_config
from distill_tune.config.components import check_components
from distill_tune.config.files import config_names, configs_folder, recipes_folder
from distill_tune.config.trust import is_known, may_be_called, missing_outside, outside
from distill_tune.data.prepare import prepare_rows
from distill_tune.disk import damage, write_checksums
from distill_tune.errors import UserError
from distill_tune.models.decoder_config import decoder_config, read_config_json
from distill_tune.training import TrainingState, read_metrics

NASTY: list[object] = [
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 10**400, 0.0, -0.5, 1e308, float("nan"), float("inf")),
    *(
        "",
        " ",
        "a",
        "\x00",
        "\ud800",
        "${x}",
        "${oc.env:HOME}",
        "../../x",
        "/",
        "~",
        "ü好🙂",
        "a" * 10_000,
        "{input}",
        "{",
        "}",
    ),
    *(
        [],
        [None],
        {},
        {"_component_": "x"},
        {"_component_": 5},
        {"_component_": "torch.optim.AdamW"},
        [[]],
        [{}],
        {"a": {}},
    ),
]
TEXTS = [
    b"\x00",
    b"\xff",
    b"[" * 3000,
    b"{",
    b"}",
    b"${",
    b"!!python/name:os.system",
    b": ",
    b"\n- ",
    b"\t",
    b"&a *a",
    b'"',
    b"\\u",
]
CHAT = [
    {
        "messages": [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": "hello"},
        ]
    },
    {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]},
]


_MEMORY = 8 * 2**30


class Fuzz:
    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.random = folder, random.Random(seed)
        self.recipe = recipes_folder() / "kd_single_device.py"
        self.configs = [(configs_folder() / f"{name}.yaml").read_bytes() for name in config_names()]
        tokenizer_file = write_tokenizer(folder / "tokenizer.model")
        self.tokenizer_config = OmegaConf.create(
            {
                "_component_": "torchtune.models.llama2.llama2_tokenizer",
                "path": str(tokenizer_file),
                "max_seq_len": 64,
            }
        )
        from distill_tune.config import instantiate

        self.tokenizer = instantiate(self.tokenizer_config)
        self.model = write_model(folder / "model", tokenizer_file, seed=1)
        self.state = TrainingState(3, 0, {"rows": 4}, {"kd_ratio": 0.5})
        self.read = b""  # what the last loader read

    # ---- What is broken

    def mutated(self, content: bytes) -> bytes:
        """Some bytes flipped, cut, doubled, moved, or put in."""
        broken = bytearray(content)
        for _ in range(self.random.choice([1, 1, 1, 2, 5, 30])):
            at = self.random.randrange(len(broken) + 1)
            length = self.random.choice([1, 1, 2, 8, 100, len(broken)])
            how = self.random.randrange(6)
            if how == 0 and at < len(broken):
                broken[at] ^= 1 << self.random.randrange(8)
            elif how == 1:
                del broken[at : at + length]
            elif how == 2:
                broken[at:at] = broken[at : at + length]
            elif how == 3:
                broken[at:at] = self.random.choice(TEXTS)
            elif how == 4:
                del broken[at:]
            else:
                other = self.random.randrange(len(broken) + 1)
                broken[at : at + length] = broken[other : other + length]
            if len(broken) > 200_000:
                del broken[200_000:]
        return bytes(broken)

    def nasty(self) -> object:
        return copy.deepcopy(self.random.choice(NASTY))  # it may be broken further

    def changed(self, tree: object) -> object:
        """A tree of values with some replaced, removed, added or moved."""
        for _ in range(self.random.choice([1, 1, 2, 4])):
            places = list(_places(tree))
            if not places:
                return self.nasty()
            node, key = self.random.choice(places)
            how = self.random.randrange(5)
            if how < 2:
                node[key] = self.nasty()
            elif how == 2:
                del node[key]
            elif how == 3:
                other, other_key = self.random.choice(places)
                with contextlib.suppress(KeyError, IndexError):
                    node[key] = json.loads(json.dumps(other[other_key]))
            elif isinstance(node, dict):
                node[str(self.nasty())[:20]] = self.nasty()
            else:
                node.append(self.nasty())
        return tree

    def _write(self, name: str, content: bytes) -> Path:
        self.read = content
        path = self.folder / name
        path.write_bytes(content)
        return path

    # ---- Loaders

    def config_bytes(self) -> None:
        path = self._write("config.yaml", self.mutated(self.random.choice(self.configs)))
        self._check(path, [])

    def config_tree(self) -> None:
        tree = self.changed(yaml.safe_load(self.random.choice(self.configs)))
        self._check(self._write("config.yaml", yaml.safe_dump(tree, allow_unicode=True).encode("utf-8", "replace")), [])

    def overrides(self) -> None:
        content = self.random.choice(self.configs)
        keys = [key for _, key in _places(yaml.safe_load(content)) if isinstance(key, str)]
        made = []
        for _ in range(self.random.choice([1, 2, 3])):
            key = ".".join(
                str(self.random.choice([*keys, 0, 1, "", "x"])) for _ in range(self.random.choice([1, 1, 2, 3]))
            )
            value = (
                str(self.nasty())
                if self.random.random() < 0.7
                else self.mutated(b"[a, {b: 1}]").decode("utf-8", "replace")
            )
            made.append(self.random.choice(["", "", "+", "~"]) + key + self.random.choice(["=", "=", "=", ""]) + value)
        self._check(self._write("config.yaml", content), made)

    def _check(self, path: Path, overrides: list[str]) -> None:
        self.read += b"\n" + "\n".join(overrides).encode("utf-8", "replace")
        cfg = checked_config(self.recipe, str(path), overrides)
        check_components(cfg, is_known)
        list(outside(cfg, ["."])) + list(missing_outside(cfg, ["."]))
        with contextlib.suppress(UserError):
            may_be_called(cfg.get("kd_loss"))

    def rows(self) -> None:
        component, rows = self.random.choice(
            [("instruct", ROWS[:6]), ("chat", CHAT * 3), ("text", [{"text": row["output"]} for row in ROWS[:6]])]
        )
        suffix = self.random.choice(["json", "jsonl", "csv", "parquet"])
        rows = json.loads(json.dumps(rows))
        if self.random.random() < 0.5:
            rows = self.changed(rows)
        content = _as_file(rows, suffix)
        if content is None or self.random.random() < 0.6:
            content = self.mutated(content or b"")
        path = self._write(f"rows.{suffix}", content)
        dataset = OmegaConf.create({"_component_": f"distill_tune.data.{component}", "source": str(path)})
        on_bad_row = self.random.choice(["stop", "skip"])
        datasets, _ = prepare_rows(dataset, self.tokenizer, self.tokenizer_config, on_bad_row=on_bad_row)
        plan = data.StepPlan(datasets, batch_size=1)
        assert 0 <= plan.largest_token < VOCAB_SIZE
        for batch in plan.micro_batches(0, 0):
            assert len(batch.supervised_positions)
            assert [plan.origin(*place) for place in batch.places]

    def config_json(self) -> None:
        content = (self.model / "config.json").read_bytes()
        content = (
            self.mutated(content)
            if self.random.random() < 0.4
            else json.dumps(self.changed(json.loads(content))).encode()
        )
        (self.folder / "broken").mkdir(exist_ok=True)
        self._write("broken/config.json", content)
        decoder_config(read_config_json(self.folder / "broken", "model.path"))

    def weights(self) -> None:
        folder = self.folder / "weights"
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_bytes((self.model / "config.json").read_bytes())
        weights = (self.model / "model.safetensors").read_bytes()
        if self.random.random() < 0.5:
            self._write("weights/model.safetensors", self.mutated(weights[:4000]) + weights[4000:])
            (folder / "model.safetensors.index.json").unlink(missing_ok=True)
        else:
            names = ["model.safetensors", "../model/model.safetensors", "/etc/hostname", "", ".", "x", 5, None, []]
            index = {"weight_map": {str(n): self.random.choice(names) for n in range(2)}}
            content = json.dumps(self.changed(index)).encode()
            self._write(
                "weights/model.safetensors.index.json", self.mutated(content) if self.random.random() < 0.3 else content
            )
            (folder / "model.safetensors").write_bytes(weights)
        checkpoint = models.Checkpoint.read("model", "model.path", folder)
        assert all(file.resolve().parent == folder.resolve() for file in checkpoint.files)
        checkpoint.headers()

    def state_file(self) -> None:
        folder = self.folder / "step_3"
        folder.mkdir(exist_ok=True)
        self.state.write(folder)
        write_checksums(folder, [("state.json", hashlib.sha256((folder / "state.json").read_bytes()).hexdigest())])
        name = self.random.choice(["state.json", "SHA256SUMS"])
        before = (folder / name).read_bytes()
        content = self.mutated(before)
        self._write(f"step_3/{name}", content)
        if damage(folder) is None:
            TrainingState.read(folder)
            assert (folder / "state.json").read_bytes() and (
                content.split() == before.split() or b"state.json" in content
            )
        list(read_metrics(self._write("metrics.jsonl", self.mutated(b'{"step": 1, "loss": 2.0}\n' * 3))))

    def tokenizer_folder(self) -> None:
        folder = self.folder / "tokenizer_folder"
        folder.mkdir(exist_ok=True)
        vocabulary = {chr(97 + n): n for n in range(26)} | {"<unk>": 26, "</s>": 27}
        files = {
            "tokenizer.json": {
                "version": "1.0",
                "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"},
                "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "."}, "behavior": "Isolated", "invert": False},
            },
            "tokenizer_config.json": {
                "eos_token": "</s>",
                "chat_template": "{% for m in messages %}{{ m['content'] }}{{ eos_token }}{% endfor %}",
            },
            "config.json": {"eos_token_id": 27},
        }
        name = self.random.choice(list(files))
        files[name] = self.changed(json.loads(json.dumps(files[name])))  # type: ignore[assignment]
        for file, tree in files.items():
            (folder / file).write_text(json.dumps(tree))
        self.read = (folder / name).read_bytes()
        if self.random.random() < 0.3:
            self._write(f"tokenizer_folder/{name}", self.mutated(self.read))
        tokenizer = data.hf_tokenizer(str(folder))
        dataset = OmegaConf.create({"_component_": "distill_tune.data.chat", "source": str(self.folder / "chat.json")})
        (self.folder / "chat.json").write_text(json.dumps(CHAT))
        prepare_rows(dataset, tokenizer, OmegaConf.create({"path": str(folder)}))


def _places(node: object) -> Iterator[tuple[dict | list, object]]:
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        yield node, key  # type: ignore[misc]
        yield from _places(value)


def _as_file(rows: object, suffix: str) -> bytes | None:
    """Rows in a format; None where it cannot hold them."""
    try:
        if suffix == "json":
            return json.dumps(rows).encode()
        if suffix == "jsonl":
            return "".join(json.dumps(row) + "\n" for row in rows).encode()  # type: ignore[attr-defined]
        if suffix == "csv":
            lines = [list(rows[0]), *([str(value) for value in row.values()] for row in rows)]  # type: ignore[index, attr-defined]
            return "".join(",".join(json.dumps(cell) for cell in line) + "\n" for line in lines).encode()
        sink = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
        return sink.getvalue()
    except Exception:
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--findings", type=Path, default=Path("findings"))
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))  # what takes more is a finding, too
    os.environ["HF_HUB_OFFLINE"] = "1"
    counts: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DISTILL_TUNE_CACHE"] = str(Path(folder) / "cache")
        fuzz = Fuzz(Path(folder), options.seed)
        loaders: list[Callable[[], None]] = [
            *(fuzz.config_bytes, fuzz.config_tree, fuzz.overrides, fuzz.rows, fuzz.config_json, fuzz.weights),
            *(fuzz.state_file, fuzz.tokenizer_folder),
        ]
        found: collections.Counter[str] = collections.Counter()
        until, told = time.monotonic() + 60 * options.minutes, time.monotonic()
        while time.monotonic() < until:
            loader = fuzz.random.choice(loaders)
            name = loader.__name__
            try:
                with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                    loader()
                counts[f"{name} accepted"] += 1
            except UserError:
                counts[f"{name} refused"] += 1
            except Exception as error:
                where = traceback.extract_tb(error.__traceback__)
                own = [frame for frame in where if "distill_tune" in frame.filename or "fuzz_loaders" in frame.filename]
                kind = f"{name}: {type(error).__name__} at {Path(own[-1].filename).name}:{own[-1].lineno}"
                found[kind] += 1
                if found[kind] <= 3:
                    options.findings.mkdir(exist_ok=True)
                    stem = hashlib.sha256(kind.encode()).hexdigest()[:8]
                    (options.findings / f"{stem}-{found[kind]}.input").write_bytes(fuzz.read)
                    (options.findings / f"{stem}-{found[kind]}.txt").write_text(
                        kind + "\n" + traceback.format_exc(), errors="replace"
                    )
            if time.monotonic() - told > 60:
                told = time.monotonic()
                print(sum(counts.values()), dict(found), flush=True)
    for line in [*sorted(counts.items()), ("findings", dict(found))]:
        print(*line)
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
