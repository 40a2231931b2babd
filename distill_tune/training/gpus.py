"""NVIDIA's cards: what they compute, hold and pass on, by the names that CUDA and people give them."""

import re
from typing import NamedTuple

import torch

_PCIE3, _PCIE4, _PCIE5 = 16e9, 32e9, 64e9  # bytes a second through 16 lanes, one way


class Gpu(NamedTuple):
    """
    Attributes:
        name: as people call it, with its form where there are several.
        gigabytes: as it is sold.
        memory: bytes, as its driver reports them.
        bf16: dense tensor-core rate in FLOP/s with sums in fp32, without sparsity, from NVIDIA's data sheets; None
            where it has no bf16.
        fp32: rate of plain float32 in FLOP/s, from there, too; None where a size is all that is known.
        link: bytes a second to the other cards of a machine, one way.
        host: bytes a second from the machine's memory.
    """

    name: str
    gigabytes: int
    memory: float
    bf16: float | None
    fp32: float | None
    link: float
    host: float

    def __str__(self) -> str:
        return f"{self.name} {self.gigabytes} GB"

    def rate(self, dtype: torch.dtype) -> float | None:
        """FLOP/s in bf16 or fp32; None where it cannot compute in it."""
        return self.bf16 if dtype == torch.bfloat16 else self.fp32


def _card(
    name: str, gigabytes: int, mib: int, bf16: float | None, fp32: float, link: float, host: float | None = None
) -> Gpu:
    """Rates in TFLOP/s; without ``host`` cards reach one another over the bus, as they reach the host."""
    return Gpu(name, gigabytes, mib * 2.0**20, None if bf16 is None else bf16 * 1e12, fp32 * 1e12, link, host or link)


# Of those that a name fits the first is meant.
GPUS = (
    _card("T4", 16, 15360, None, 8.1, _PCIE3),
    _card("V100 SXM2", 32, 32768, None, 15.7, 150e9, _PCIE3),
    _card("V100 SXM2", 16, 16384, None, 15.7, 150e9, _PCIE3),
    _card("V100 PCIe", 32, 32768, None, 14.0, _PCIE3),
    _card("V100 PCIe", 16, 16384, None, 14.0, _PCIE3),
    _card("A10", 24, 23028, 125, 31.2, _PCIE4),
    _card("A10G", 24, 23028, 70, 35.0, _PCIE4),
    _card("A30", 24, 24576, 165, 10.3, _PCIE4),
    _card("A40", 48, 46068, 149.7, 37.4, _PCIE4),
    _card("A4000", 16, 16376, 76.7, 19.2, _PCIE4),
    _card("A5000", 24, 24564, 111.1, 27.8, _PCIE4),
    _card("A6000", 48, 49140, 154.8, 38.7, _PCIE4),
    _card("A100 SXM4", 80, 81920, 312, 19.5, 300e9, _PCIE4),
    _card("A100 SXM4", 40, 40960, 312, 19.5, 300e9, _PCIE4),
    _card("A100 PCIe", 80, 81920, 312, 19.5, _PCIE4),
    _card("A100 PCIe", 40, 40960, 312, 19.5, _PCIE4),
    _card("A800 SXM4", 80, 81920, 312, 19.5, 200e9, _PCIE4),
    _card("A800 PCIe", 80, 81920, 312, 19.5, _PCIE4),
    _card("L4", 24, 23034, 121, 30.3, _PCIE4),
    _card("L20", 48, 46068, 119.5, 59.8, _PCIE4),
    _card("L40", 48, 46068, 181, 90.5, _PCIE4),
    _card("L40S", 48, 46068, 362, 91.6, _PCIE4),
    _card("6000 Ada", 48, 49140, 364.2, 91.1, _PCIE4),
    _card("H100 SXM5", 80, 81559, 989, 67, 450e9, _PCIE5),
    _card("H100 PCIe", 80, 81559, 756, 51, _PCIE5),
    _card("H100 NVL", 94, 95830, 835, 60, _PCIE5),
    _card("H800 SXM5", 80, 81559, 989, 67, 200e9, _PCIE5),
    _card("H800 PCIe", 80, 81559, 756, 51, _PCIE5),
    _card("H20", 96, 97871, 148, 44, 450e9, _PCIE5),
    _card("H200 SXM5", 141, 143771, 989, 67, 450e9, _PCIE5),
    _card("H200 NVL", 141, 143771, 835, 60, _PCIE5),
    _card("GH200", 96, 97871, 989, 67, _PCIE5, 450e9),
    _card("B200", 180, 183359, 2250, 75, 900e9, _PCIE5),
    _card("2080 Ti", 11, 11264, None, 13.4, _PCIE3),
    _card("3060", 12, 12288, 25.5, 12.7, _PCIE4),
    _card("3060 Ti", 8, 8192, 32.4, 16.2, _PCIE4),
    _card("3070", 8, 8192, 40.6, 20.3, _PCIE4),
    _card("3070 Ti", 8, 8192, 43.5, 21.7, _PCIE4),
    _card("3080", 10, 10240, 59.5, 29.8, _PCIE4),
    _card("3080", 12, 12288, 61.3, 30.6, _PCIE4),
    _card("3080 Ti", 12, 12288, 68.2, 34.1, _PCIE4),
    _card("3090", 24, 24576, 71, 35.6, _PCIE4),
    _card("3090 Ti", 24, 24564, 80, 40.0, _PCIE4),
    _card("4060", 8, 8188, 30.2, 15.1, _PCIE3),  # half as many lanes, twice as fast
    _card("4060 Ti", 8, 8188, 44.1, 22.1, _PCIE3),
    _card("4060 Ti", 16, 16380, 44.1, 22.1, _PCIE3),
    _card("4070", 12, 12282, 58.3, 29.1, _PCIE4),
    _card("4070 SUPER", 12, 12282, 71, 35.5, _PCIE4),
    _card("4070 Ti", 12, 12282, 80.2, 40.1, _PCIE4),
    _card("4070 Ti SUPER", 16, 16376, 88.2, 44.1, _PCIE4),
    _card("4080", 16, 16376, 97.5, 48.7, _PCIE4),
    _card("4080 SUPER", 16, 16376, 104.4, 52.2, _PCIE4),
    _card("4090", 24, 24564, 165, 82.6, _PCIE4),
    _card("4090 D", 24, 24564, 147, 73.5, _PCIE4),
    _card("5060", 8, 8151, 38.4, 19.2, _PCIE4),  # as the 4060
    _card("5060 Ti", 8, 8151, 47.4, 23.7, _PCIE4),
    _card("5060 Ti", 16, 16311, 47.4, 23.7, _PCIE4),
    _card("5070", 12, 12227, 61.7, 30.9, _PCIE5),
    _card("5070 Ti", 16, 16303, 87.9, 43.9, _PCIE5),
    _card("5080", 16, 16303, 112.6, 56.3, _PCIE5),
    _card("5090", 32, 32607, 209.5, 104.8, _PCIE5),
    _card("PRO 6000 Blackwell", 96, 97887, 503.8, 125, _PCIE5),
)
_MAKERS = re.compile(r"\b(nvidia|geforce|tesla|rtx)")
_FORMS = re.compile(r"(sxm|pcie|nvl)\d?", re.IGNORECASE)
# Words that tell no card from another; GH200's 480 GB are its processor's.
_LEFT_OUT = {"generation", "blackwell", "server", "workstation", "edition", "480gb"}
_BY_MEMORY = {"hbm3": "sxm", "hbm2e": "pcie"}  # the H100 goes by these


def find_gpu(name: str) -> Gpu | None:
    """The card of a name as CUDA gives it ("NVIDIA A100-SXM4-80GB"), or as people write it ("a100", "RTX4090").

    Whole words count: what is left of a name beside a card's is another card, a laptop's, or a part of one (MIG). A
    size ("24GB") is a card of which nothing else is known.
    """
    if size := re.fullmatch(r"([1-9]\d*) ?gi?b?", name.strip().lower()):
        return Gpu("any card of", int(size[1]), int(size[1]) * 2.0**30, None, None, _PCIE3, _PCIE3)
    wanted, form, gigabytes = _parts(name)
    for gpu in GPUS:
        its_name, its_form, _ = _parts(gpu.name)
        if wanted == its_name and form in (None, its_form) and gigabytes in (None, gpu.gigabytes):
            return gpu
    return None


def gpu_names() -> list[str]:
    """All, without their forms."""
    return list(dict.fromkeys(_FORMS.sub("", gpu.name, 1).strip() for gpu in GPUS))


def _parts(name: str) -> tuple[str, str | None, int | None]:
    """What of a name tells the chip, the form and the memory."""
    plain = _MAKERS.sub(" ", name.lower().replace("_", " "))
    words = re.findall(r"[a-z0-9]+", _FORMS.sub(r" \g<0> ", re.sub(r"(\d) +gi?b\b", r"\1gb", plain)))
    chip, form, gigabytes = "", None, None
    for word in words:
        if word in _LEFT_OUT:
            continue
        if found := _FORMS.fullmatch(word):
            form = found[1]
        elif word in _BY_MEMORY:
            form = _BY_MEMORY[word]
        elif chip and (memory := re.fullmatch(r"(\d\d\d?|\d(?=g))(?:gi?b?)?", word)):
            gigabytes = int(memory[1])
        else:
            chip += word
    return chip, form, gigabytes
