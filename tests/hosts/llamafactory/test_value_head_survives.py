"""A reward model keeps its value head: in an export, on the hub, and as a classifier."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from finepref.cli import app
from safetensors.torch import load_file
from typer.testing import CliRunner

HEAD = "value_head.safetensors"
OURS = {HEAD, "finepref_receipt.json", "README.md"}


@pytest.fixture
def hub(monkeypatch):
    """What would be uploaded: repository -> path -> bytes, after all commits. Only calls to the hub are replaced."""
    found: dict[str, dict[str, bytes]] = {}

    def create_repo(repo_id, **options):
        found.setdefault(repo_id, {})
        return type("Url", (str,), {"repo_id": repo_id})(f"https://hub/{repo_id}")

    def create_commit(repo_id, operations, **options):
        for each in operations:
            found[repo_id][each.path_in_repo] = Path(each.path_or_fileobj).read_bytes()

    def upload_folder(*, repo_id, folder_path, ignore_patterns=(), **options):
        from huggingface_hub.utils import filter_repo_objects

        names = [str(file.relative_to(folder_path)) for file in Path(folder_path).rglob("*") if file.is_file()]
        for name in filter_repo_objects(names, ignore_patterns=[*ignore_patterns]):
            found[repo_id][name] = Path(folder_path, name).read_bytes()
        return type("Job", (), {"done": lambda self: True})()

    def hf_hub_download(repo_id, filename, **options):
        import tempfile

        from huggingface_hub.errors import LocalEntryNotFoundError

        if filename not in found[repo_id]:
            raise LocalEntryNotFoundError(filename)
        file = Path(tempfile.mkdtemp(), filename)
        file.write_bytes(found[repo_id][filename])
        return str(file)

    for place in ("transformers.utils.hub", "transformers.trainer"):
        monkeypatch.setattr(f"{place}.create_repo", create_repo)
    for place in ("transformers.utils.hub", "huggingface_hub"):
        monkeypatch.setattr(f"{place}.create_commit", create_commit)
    monkeypatch.setattr("transformers.trainer.upload_folder", upload_folder)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", hf_hub_download)
    return found


@pytest.fixture
def trained(run):
    def train(kind: str, **more: object):
        return run(**{"name": "apo_rm", "finetuning_type": kind, "learning_rate": 5e-3, **more})

    return train


def exported(tiny_model: Path, done, folder: Path, **more: object) -> Path:
    from llamafactory.train.tuner import export_model

    lora = (done.folder / "adapter_config.json").is_file()
    place = {"model_name_or_path": str(tiny_model), "adapter_name_or_path": str(done.folder)}
    place = place if lora else {"model_name_or_path": str(done.folder)}
    export_model(place | {"template": "chatml", "export_dir": str(folder), "infer_dtype": "float32", **more})
    return folder


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_an_export_has_the_head_whatever_stage_the_user_names(trained, tiny_model, tmp_path, kind):
    """The host copies it only with stage rm; its own examples of an export name no stage."""
    done = trained(kind)
    for i, stage in enumerate(({}, {"stage": "rm"}, {"stage": "apo_rm"})):
        folder = exported(tiny_model, done, tmp_path / str(i), **stage)
        assert (folder / HEAD).read_bytes() == (done.folder / HEAD).read_bytes()
        assert json.loads((folder / "finepref_receipt.json").read_text()) == done.receipt


def test_the_head_below_a_later_adapter_is_not_taken(trained, run, tiny_model, tmp_path):
    """An SFT adapter on top of a reward model changes the hidden states that its head reads."""
    done = trained("full")
    more = {"finetuning_type": "lora", "model_name_or_path": str(done.folder), "output_dir": str(tmp_path / "sft")}
    later = run(name="granular_sft", **more)
    folder = exported(done.folder, later, tmp_path / "merged")
    assert not (folder / HEAD).exists()


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_an_export_to_the_hub_has_head_receipt_and_card(trained, hub, tiny_model, tmp_path, kind):
    done = trained(kind)
    folder = exported(tiny_model, done, tmp_path / "exported", stage="apo_rm", export_hub_model_id="me/rm")
    files = hub["me/rm"]
    assert files.keys() >= OURS | {"config.json", "model.safetensors", "tokenizer.json"}
    assert files[HEAD] == (done.folder / HEAD).read_bytes()
    assert json.loads(files["finepref_receipt.json"]) == done.receipt
    card = files["README.md"].decode()
    assert card.startswith("---\n")  # the host's card, which transformers uploads with the model
    assert "## Stage `apo_rm`" in card
    assert (folder / "README.md").read_text() == card


def test_an_export_of_a_model_of_others_uploads_nothing_of_ours(hub, tiny_model, tmp_path):
    from llamafactory.train.tuner import export_model

    keys = {"model_name_or_path": str(tiny_model), "template": "chatml", "export_dir": str(tmp_path / "exported")}
    export_model(keys | {"export_hub_model_id": "me/plain"})
    assert not hub["me/plain"].keys() & OURS - {"README.md"}
    assert "finepref" not in hub["me/plain"]["README.md"].decode()


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_push_to_hub_after_and_during_training_has_head_receipt_and_card(trained, hub, kind, monkeypatch):
    from transformers import Trainer

    during: list[dict[str, bytes]] = []
    push = Trainer._push_from_checkpoint

    def watched(self, folder):
        push(self, folder)
        during.append(dict(hub["me/rm"]))
        assert hub["me/rm"][HEAD] == Path(folder, HEAD).read_bytes()

    monkeypatch.setattr(Trainer, "_push_from_checkpoint", watched)
    done = trained(kind, push_to_hub=True, hub_model_id="me/rm", save_steps=1, max_steps=2)
    files = hub["me/rm"]
    assert len(during) == 2
    assert during[0][HEAD] != during[1][HEAD]
    assert files[HEAD] == (done.folder / HEAD).read_bytes()
    assert json.loads(files["finepref_receipt.json"]) == done.receipt
    assert files["README.md"] == (done.folder / "README.md").read_bytes()
    assert "## Stage `apo_rm`" in files["README.md"].decode()


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_a_trained_reward_model_becomes_a_classifier_with_the_rewards_of_do_predict(trained, tmp_path, kind):
    """A new value head has no bias, which a classifier could not have."""
    from sample_rows import ranked_rows
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    done = trained(kind, eval_dataset="lists", do_predict=True)
    outcome = CliRunner().invoke(app, ["apo", "export", str(done.folder), str(tmp_path / "classifier")])
    assert outcome.exit_code == 0, outcome.output
    lines = map(json.loads, (done.folder / "finepref_scores.jsonl").read_text().splitlines())
    expected = [reward for line in lines for reward in line["rewards"]]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "classifier")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "classifier")
    asked = [
        [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": response}]
        for row in ranked_rows()
        for response in row["responses"]
    ]
    batch = tokenizer.apply_chat_template(asked, padding=True, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        assert model(**batch).logits[:, 0].tolist() == pytest.approx(expected, abs=1e-4)
    assert load_file(done.folder / HEAD)["v_head.summary.bias"].item() == 0
    assert (tmp_path / "classifier/finepref_receipt.json").is_file()
