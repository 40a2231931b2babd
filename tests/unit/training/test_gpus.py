"""Cards by the names that CUDA gives them, and by those that people write."""

import pytest
import torch

from distill_tune.training.gpus import GPUS, find_gpu, gpu_names


@pytest.mark.parametrize(
    ("name", "card"),
    [
        ("NVIDIA A100-SXM4-80GB", "A100 SXM4 80 GB"),
        ("NVIDIA A100-SXM4-40GB", "A100 SXM4 40 GB"),
        ("NVIDIA A100 80GB PCIe", "A100 PCIe 80 GB"),
        ("NVIDIA A100-PCIE-40GB", "A100 PCIe 40 GB"),
        ("NVIDIA A10", "A10 24 GB"),
        ("NVIDIA A10G", "A10G 24 GB"),
        ("NVIDIA H100 80GB HBM3", "H100 SXM5 80 GB"),
        ("NVIDIA H100 PCIe", "H100 PCIe 80 GB"),
        ("NVIDIA H100 NVL", "H100 NVL 94 GB"),
        ("NVIDIA H200", "H200 SXM5 141 GB"),
        ("NVIDIA GH200 480GB", "GH200 96 GB"),
        ("NVIDIA L4", "L4 24 GB"),
        ("NVIDIA L40", "L40 48 GB"),
        ("NVIDIA L40S", "L40S 48 GB"),
        ("NVIDIA RTX A6000", "A6000 48 GB"),
        ("NVIDIA RTX 6000 Ada Generation", "6000 Ada 48 GB"),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "PRO 6000 Blackwell 96 GB"),
        ("NVIDIA GeForce RTX 3090 Ti", "3090 Ti 24 GB"),
        ("NVIDIA GeForce RTX 4090", "4090 24 GB"),
        ("Tesla V100-SXM2-16GB", "V100 SXM2 16 GB"),
    ],
)
def test_cards_are_known_by_the_names_that_cuda_gives_them(name, card):
    assert str(find_gpu(name)) == card


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA RTX A1000",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 5090 D",
        "NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition",
        "NVIDIA A100-SXM4-80GB MIG 1g.10gb",
        "NVIDIA GH200 144G HBM3e",
        "NVIDIA GB200",
        "Quadro RTX 6000",
        "Radeon",
        "",
    ],
)
def test_another_card_is_not_taken_for_one_whose_name_is_part_of_its_own(name):
    assert find_gpu(name) is None


@pytest.mark.parametrize(
    ("written", "card"),
    [
        ("h100", "H100 SXM5 80 GB"),
        ("H100 PCIe", "H100 PCIe 80 GB"),
        ("h100-nvl", "H100 NVL 94 GB"),
        ("a100-40gb", "A100 SXM4 40 GB"),
        ("A100 80", "A100 SXM4 80 GB"),
        ("5090", "5090 32 GB"),
        ("rtx4090", "4090 24 GB"),
        ("RTX_3090Ti", "3090 Ti 24 GB"),
        ("B200", "B200 180 GB"),
        ("a6000", "A6000 48 GB"),
        ("l40s", "L40S 48 GB"),
        ("V100", "V100 SXM2 32 GB"),
        ("3060", "3060 12 GB"),
        ("4060 Ti 16GB", "4060 Ti 16 GB"),
        ("4060 Ti", "4060 Ti 8 GB"),
        ("rtx 4070 ti super", "4070 Ti SUPER 16 GB"),
        ("RTX 3080 12GB", "3080 12 GB"),
        ("3060 Ti 8GB", "3060 Ti 8 GB"),
        ("24GB", "any card of 24 GB"),
        ("80 GiB", "any card of 80 GB"),
    ],
)
def test_cards_are_known_in_any_spelling(written, card):
    assert str(find_gpu(written)) == card


def test_every_card_is_found_by_its_own_name_and_every_name_that_is_told_finds_one():
    for gpu in GPUS:
        assert find_gpu(str(gpu)) == gpu
        assert find_gpu(f"NVIDIA {gpu.name}-{gpu.gigabytes}GB") == gpu
    assert all(find_gpu(name) for name in gpu_names())
    assert {"H100", "V100"} <= set(gpu_names())  # without their forms


def test_a_card_has_its_rate_in_each_dtype_that_it_computes_in():
    t4, h100 = find_gpu("T4"), find_gpu("H100")
    assert (t4.rate(torch.bfloat16), t4.rate(torch.float32)) == (None, 8.1e12)
    assert (h100.rate(torch.bfloat16), h100.rate(torch.float32)) == (989e12, 67e12)
