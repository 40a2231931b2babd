"""What is measured of a model that another package runs, against that package alone."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from tiny import ROWS
from transformers import AutoModelForCausalLM

from distill_tune import data
from distill_tune.evaluation import measure, open_named, prepare, results
from distill_tune.export.ship import export


@pytest.mark.torchao
def test_an_export_of_torchao_has_the_figures_that_transformers_finds(tmp_path, student_folder, teacher_folder):
    shipped = export(student_folder, "torchao:int8", tmp_path / "int8", dtype="fp32", max_kl=100).folder
    (tmp_path / "rows.json").write_text(json.dumps(ROWS[:5]))
    rows = OmegaConf.create({"_component_": "distill_tune.data.instruct", "source": str(tmp_path / "rows.json")})
    tokenizer, folders = data.hf_tokenizer(str(student_folder)), {"teacher": teacher_folder, "shipped": shipped}
    named = [open_named(label, str(folder), tokenizer, torch.float32) for label, folder in folders.items()]
    prepared = prepare(named, rows, tokenizer, teacher="teacher")
    assert named[1].kind == "torchao"
    found = results(prepared.documents, measure(prepared, torch.device("cpu"), with_speed=False), "teacher")

    theirs = {label: AutoModelForCausalLM.from_pretrained(folder, dtype="auto") for label, folder in folders.items()}
    assert type(theirs["shipped"].model.layers[0].mlp.up_proj.weight).__name__ == "Int8Tensor"
    nll = kl = count = 0
    for document in prepared.documents.written[0]:
        tokens, learned = torch.from_numpy(document.tokens)[None], torch.from_numpy(document.supervised)[1:]
        with torch.no_grad():
            q, p = (
                theirs[label](tokens).logits[0, :-1][learned].double().log_softmax(-1)
                for label in ("shipped", "teacher")
            )
        nll += F.nll_loss(q, tokens[0, 1:][learned], reduction="sum").item()
        kl += F.kl_div(q, p, reduction="sum", log_target=True).item()
        count += int(learned.sum())
    of_shipped = found["models"]["shipped"]
    assert of_shipped["supervised"]["tokens"] == count
    assert of_shipped["supervised"]["perplexity"] == pytest.approx(math.exp(nll / count), rel=1e-5)
    assert of_shipped["to_teacher"]["forward_kl"]["mean"] == pytest.approx(kl / count, rel=1e-4)
