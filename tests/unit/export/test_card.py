"""The model card: front matter that huggingface_hub reads, lineage, licences, data and figures; nothing private."""

import json
import shutil

import pytest
from huggingface_hub import ModelCard
from omegaconf import OmegaConf

from distill_tune.export.lineage import front_matter, hub_name_of, public_name, without_paths
from distill_tune.export.ship import export

TEACHER_CARD = "---\nlicense: llama3.2\nlicense_link: LICENSE\ntags: [a]\n---\n\n# Teacher\n"
TABLE = "| model | perplexity |\n| --- | ---: |\n| /home/someone/outputs/mine/model | 12.5 |"


@pytest.fixture
def published(base, run, tmp_path, monkeypatch):
    """A run whose base is from a hub's cache and whose teacher's folder has a card and terms."""
    of_base = tmp_path / "hub" / "models--maker--Base" / "snapshots" / "0123"
    shutil.copytree(base, of_base)
    (of_base / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    (of_base / "LICENSE").write_text("terms")
    teacher = tmp_path / "teachers" / "Large"
    shutil.copytree(base, teacher)
    (teacher / "README.md").write_text(TEACHER_CARD)
    shutil.copytree(run, tmp_path / "mine")
    cfg = OmegaConf.load(run / "config.yaml")
    cfg.model.path, cfg.teacher_model.path = str(of_base), str(teacher)
    cfg.dataset = [{"source": "someone/rows"}, {"source": "/home/someone/private/rows.json"}]
    OmegaConf.save(cfg, tmp_path / "mine" / "config.yaml")
    (tmp_path / "mine" / "evaluation").mkdir()
    (tmp_path / "mine" / "evaluation" / "table.md").write_text(TABLE + "\nhf_abcdefghijklmnopqrstuv\n")
    return tmp_path / "mine"


def card_of(run, tmp_path, to="hf", **settings) -> ModelCard:
    assert export(run, to, tmp_path / "out", **settings).passed
    return ModelCard.load(tmp_path / "out" / "README.md")


def test_the_front_matter_is_a_model_cards_own(published, tmp_path):
    data = card_of(published, tmp_path).data.to_dict()
    assert data == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "base_model": ["maker/Base"],
        "base_model_relation": "finetune",
        "license": "apache-2.0",
        "datasets": ["someone/rows"],
        "tags": ["distill-tune", "knowledge-distillation"],
    }


def test_it_tells_lineage_licences_data_and_what_was_measured(published, tmp_path):
    card = card_of(published, tmp_path)
    for line in (
        "made from maker/Base, distilled from Large",
        "- data: someone/rows",
        "- data: rows.json",
        "- kd_ratio: 0.5",
        "- base maker/Base: license apache-2.0, terms in its file LICENSE",
        "- teacher Large: license llama3.2, license_link LICENSE",
        "mean KL 0 nats a token",
        "| model | 12.5 |",
    ):
        assert line in card.text
    assert (tmp_path / "out" / "LICENSE").exists() == (published / "model" / "LICENSE").exists()


def test_rows_are_counted_where_the_run_has_noted_them(published, tmp_path):
    noted = {"data": [{"name": "dataset", "source": "/home/a/b.json", "rows": 1200, "supervised_tokens": 34567}]}
    (published / "run.json").write_text(json.dumps(noted))
    assert "- data: b.json: 1,200 rows, 34,567 supervised tokens" in card_of(published, tmp_path).text


def test_no_path_of_this_machine_and_no_secret_is_in_it(published, tmp_path):
    text = str(card_of(published, tmp_path))
    assert "/home" not in text
    assert str(tmp_path) not in text
    assert "hf_abc" not in text


def test_an_adapters_card_names_its_base(published, run, tmp_path):
    data = card_of(published, tmp_path, "adapter", base_model="maker/Renamed").data.to_dict()
    assert data["base_model"] == ["maker/Renamed"]
    assert (data["library_name"], data["base_model_relation"]) == ("peft", "adapter")
    assert "lora" in data["tags"]


def test_a_folder_of_no_run_has_a_card_too(base, tmp_path):
    card = card_of(base, tmp_path)
    assert "none was found in the folders that this was made from" in card.text
    assert "base_model" not in card.data.to_dict()


def test_names_that_may_be_told(tmp_path, base):
    assert public_name("someone/rows") == "someone/rows"
    assert public_name("https://example.org/rows.json") == "https://example.org/rows.json"
    assert public_name("~/rows.json") == public_name("/data/rows.json") == public_name("data/rows.json") == "rows.json"
    assert without_paths("in /a/b/c.json, ~/x/y and https://a.b/c/d or 1/2 or a/b") == (
        "in c.json, y and https://a.b/c/d or 1/2 or a/b"
    )
    assert hub_name_of(base) is None
    named = tmp_path / "named"
    named.mkdir()
    (named / "config.json").write_text(json.dumps({"_name_or_path": "maker/Base"}))
    assert hub_name_of(named) == "maker/Base"
    (named / "config.json").write_text(json.dumps({"_name_or_path": "/home/me/Base"}))
    assert hub_name_of(named) is None
    assert without_paths(r"../a/b.json file:///home/ann/c C:\Users\ann\d") == "b.json c d"


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("| /home/ann/My Models (old)/student v2 | 12.5 |", "| student v2 | 12.5 |"),
        ("| ~/Texte, 2. Auflage/mine | and | ../my runs/mine/model |", "| mine | and | model |"),
        (r"C:\Users\Ann Lee\models\d", "d"),
        ("file:///home/ann/My Data/rows.json", "rows.json"),
    ],
)
def test_a_folder_with_spaces_is_told_no_more_than_another(written, told):
    assert without_paths(written) == told
    assert public_name("file:///home/ann/My Data/rows.json") == public_name("My Data/rows.json") == "rows.json"


@pytest.mark.parametrize("text", ["# no front matter", "---\n[broken\n---\n", "---\n- a list\n---\n", ""])
def test_cards_of_others_may_be_anything(tmp_path, text):
    (tmp_path / "README.md").write_text(text)
    assert front_matter(tmp_path / "README.md") == {}
    assert front_matter(tmp_path / "nothing.md") == {}
