"""llama.cpp's own converter and quantiser, for architectures and kinds that are not written here."""

import dataclasses
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from distill_tune.disk import replaced_whole
from distill_tune.errors import UserError

_CONVERTER, _QUANTISER = "convert_hf_to_gguf.py", "llama-quantize"
_BUILDS = (".", "build/bin", "bin", "build/bin/Release")  # below its folder
_OF_CONVERTER = ("f32", "f16", "bf16", "q8_0")
_BUILD = re.compile(r"build = (\d+) \((\w+)\)")
_SHOWN = 12  # lines of what a tool said before it failed


@dataclasses.dataclass(frozen=True)
class LlamaCpp:
    """A folder of llama.cpp: its sources, and its tools if they were built.

    Attributes:
        version: of the sources; "unknown" where they are no git checkout.
    """

    converter: Path
    quantiser: Path | None
    version: str

    @classmethod
    def find(cls, folder: Path) -> "LlamaCpp":
        """
        Args:
            folder: of the sources, or of what was built of them below it.

        Raises:
            UserError: there is no converter.
        """
        folder = Path(os.path.expanduser(folder))
        converter = next((path for path in (folder, *folder.parents[:2]) if (path / _CONVERTER).is_file()), None)
        if converter is None:
            raise UserError(f"--llama-cpp {folder}: has no {_CONVERTER}; name the folder of llama.cpp's sources")
        built = (converter / below / _QUANTISER for below in _BUILDS)
        quantiser = next((path for path in (folder / _QUANTISER, *built) if os.access(path, os.X_OK)), None)
        described = subprocess.run(
            ["git", "-C", converter, "describe", "--tags", "--always"], capture_output=True, text=True, check=False
        )
        own = (converter / ".git").exists() and described.returncode == 0
        return cls(converter / _CONVERTER, quantiser, described.stdout.strip() if own else "unknown")

    def write(self, folder: Path, file: Path, kind: str) -> list[str]:
        """Write a folder's model as a file of any kind that these tools know.

        Args:
            folder: a merged Hugging Face folder.
            file: replaced whole.
            kind: the converter's (f32, f16, bf16, q8_0) or the quantiser's (q4_k_m, q6_k, iq4_xs...).

        Returns:
            Which tools it was, and of which version.

        Raises:
            UserError: one of them is missing, or failed; the end of what it said.
        """
        told = [f"{self.converter}: version {self.version}"]
        with replaced_whole(file) as partial:
            if kind in _OF_CONVERTER:
                self._convert(folder, partial, kind)
                return told
            if self.quantiser is None:
                raise UserError(
                    f"gguf:{kind}: is made by {_QUANTISER}, which {self.converter.parent} has not built: cmake -B "
                    f"build && cmake --build build --target {_QUANTISER}"
                )
            whole = partial.with_suffix(".whole")
            try:
                self._convert(folder, whole, "auto")
                said = _run(self.quantiser.name, [str(self.quantiser), str(whole), str(partial), kind.upper()])
            finally:
                whole.unlink(missing_ok=True)
            if not partial.is_file():
                raise UserError(f"{_QUANTISER}: wrote no file: {_end(said)}")
        build = _BUILD.search(said)
        return [*told, f"{self.quantiser}: {f'build {build[1]} ({build[2]})' if build else 'version unknown'}"]

    def _convert(self, folder: Path, file: Path, kind: str) -> None:
        command = [sys.executable, str(self.converter), str(folder), "--outfile", str(file), "--outtype", kind]
        said = _run(_CONVERTER, command)
        if not file.is_file():
            raise UserError(f"{_CONVERTER}: wrote no file: {_end(said)}")


def _run(name: str, command: Sequence[str]) -> str:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    if done.returncode:
        raise UserError(f"{name} failed ({done.returncode}): {_end(done.stdout)}")
    return done.stdout


def _end(said: str) -> str:
    return "\n".join(said.strip().splitlines()[-_SHOWN:]) or "it said nothing"
