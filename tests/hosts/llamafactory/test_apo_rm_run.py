"""A run of `apo_rm` on the real host: lists of any length, one loss per optimizer step, rewards that others read."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import weights
from finepref.losses.apo_rm import apo_rm_loss
from finepref.losses.ops import reduce
from sample_rows import ranked_rows as ranked
from sample_rows import write_rows

OPTIONS = {"kl_coeff": 1.0, "apo_coeff": 0.1, "samples": 4}


@pytest.fixture
def apo(run, tmp_path):
    """Train on ranked records; returns what `run` returns."""

    def train(records: list[dict] | None = None, **overrides: object) -> SimpleNamespace:
        folder = write_rows(tmp_path / "ranked", records or ranked(), name="lists", formatting="ranked")
        defaults = {"name": "apo_rm", "dataset": "lists", "dataset_dir": str(folder), "warmup_steps": 0}
        return run(**(defaults | overrides))

    return train


@pytest.fixture(scope="module")
def start(warm, tiny_model, sums, tmp_path_factory) -> Path:
    """A reward model as saved, its random head included: a full run with learning rate 0."""
    folder = tmp_path_factory.mktemp("start")
    keys = {"stage": "apo_rm", "do_train": True, "model_name_or_path": str(tiny_model), "template": "chatml"}
    keys |= {"dataset_dir": str(sums), "dataset": "lists", "finetuning_type": "full", "max_steps": 1}
    keys |= {"learning_rate": 0.0, "output_dir": str(folder), "cache_dir": str(folder / "cache"), "report_to": "none"}
    (folder / "recipe.yaml").write_text(json.dumps(keys))
    done = warm.run(["llamafactory-cli", "train", folder / "recipe.yaml"])
    assert done.code == 0, done.output[-3000:]
    return folder


def text_of(prompt: str, response: str, pooling: str = "last") -> str:
    """What the chatml template makes of a response, up to the token where the reward is read."""
    end = "<|im_end|>" if pooling == "eos" else ""
    return f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n{response}{end}"


def rewards_by_transformers(folder: Path, records: list[dict], pooling: str = "last") -> list[list[float]]:
    """Rewards from the saved files without the host: a forward of each text alone, the head on one hidden state."""
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    head = load_file(folder / "value_head.safetensors")
    weight, bias = head["v_head.summary.weight"][0], head["v_head.summary.bias"]
    found = []
    for record in records:
        rewards = []
        for response in record["responses"]:
            ids = tokenizer(text_of(record["prompt"], response, pooling), return_tensors="pt")["input_ids"]
            with torch.no_grad():
                hidden = model(input_ids=ids, output_hidden_states=True).hidden_states[-1][0]
            rewards.append((hidden[-1] @ weight + bias).item())
        found.append(rewards)
    return found


def scores_file(folder: Path) -> dict[str, dict]:
    """The records of finepref_scores.jsonl by id."""
    lines = (folder / "finepref_scores.jsonl").read_text(encoding="utf-8").splitlines()
    return {line["id"]: line for line in map(json.loads, lines)}


@pytest.mark.parametrize("loss", ["ranking", "wgan"])
@pytest.mark.parametrize("normalization", ["per_type", "released"])
def test_the_first_loss_is_that_of_rewards_computed_without_the_host(apo, start, tmp_path, loss, normalization):
    records = ranked()
    rewards = rewards_by_transformers(start, records)
    parts = []
    width = max(map(len, rewards))
    for values in (rewards, [r["scores"] for r in records], [[1.0] * len(r) for r in rewards]):
        parts.append(torch.tensor([[*row, *[0.0] * (width - len(row))] for row in values]))
    is_apo = torch.tensor([r.get("kind") == "apo" for r in records])
    expected = reduce(
        apo_rm_loss(
            parts[0], parts[1], is_apo, mask=parts[2].bool(), kind=loss, normalization=normalization, **OPTIONS
        )
    )
    done = apo(
        model_name_or_path=str(start),
        per_device_train_batch_size=len(records),
        gradient_accumulation_steps=1,
        max_steps=1,
        apo_loss=loss,
        apo_normalization=normalization,
        output_dir=str(tmp_path / "run"),
    )
    assert done.log[0]["loss"] == pytest.approx(expected.item(), abs=1e-5)


def test_where_the_reward_is_read_changes_the_first_loss(apo, start, tmp_path):
    losses = []
    for pooling in ("last", "eos", "mean", "max"):
        common = {"model_name_or_path": str(start), "max_steps": 1, "output_dir": str(tmp_path / pooling)}
        losses.append(apo(apo_pooling=pooling, **common).log[0]["loss"])
    for i, one in enumerate(losses):
        assert all(abs(one - other) > 1e-4 for other in losses[i + 1 :])


def test_how_a_step_is_cut_into_micro_batches_does_not_change_it(apo, start, tmp_path):
    """Six records a step, two of them apo, in 1, 2, 3 or 6 micro-batches; lists of different lengths."""
    runs = []
    for size in (6, 3, 2, 1):
        runs.append(
            apo(
                model_name_or_path=str(start),
                per_device_train_batch_size=size,
                gradient_accumulation_steps=6 // size,
                finetuning_type="full",
                apo_coeff=2.0,
                output_dir=str(tmp_path / str(size)),
            )
        )
    for other in runs[1:]:
        for one_entry, entry in zip(runs[0].log[:2], other.log[:2], strict=True):
            assert entry["loss"] == pytest.approx(one_entry["loss"], abs=1e-5)
            assert entry["rewards/accuracies"] == one_entry["rewards/accuracies"]
        for name, tensor in weights(runs[0].folder).items():
            torch.testing.assert_close(weights(other.folder)[name], tensor, atol=1e-6, rtol=1e-5)


def test_the_released_normalisation_goes_by_micro_batch(apo, start, tmp_path):
    losses = []
    for size in (6, 2):
        common = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 6 // size, "max_steps": 1}
        common |= {"model_name_or_path": str(start), "apo_normalization": "released", "apo_coeff": 2.0}
        losses.append(apo(output_dir=str(tmp_path / str(size)), **common).log[0]["loss"])
    assert abs(losses[0] - losses[1]) > 1e-4


def test_two_ranks_take_the_steps_of_one_even_with_reentrant_checkpointing(apo, forked, start, tmp_path):
    """The host's own RM cannot do this with full weights: DDP searches for unused parameters and finds some twice."""
    common = {"model_name_or_path": str(start), "finetuning_type": "full", "apo_coeff": 2.0, "max_steps": 2}
    common |= {"name": "apo_rm", "dataset": "lists", "dataset_dir": str(tmp_path / "ranked"), "warmup_steps": 0}
    common |= {"eval_dataset": "lists", "do_eval": True, "do_predict": True, "per_device_eval_batch_size": 5}
    alone = apo(**common, per_device_train_batch_size=4, output_dir=str(tmp_path / "one"))
    both = forked(
        processes=2,
        per_device_train_batch_size=2,
        output_dir=str(tmp_path / "two"),
        **common,
    )
    assert both.code == 0, both.output[-3000:]
    log = json.loads((both.folder / "trainer_state.json").read_text())["log_history"]
    for entry, one in zip(log[:2], alone.log[:2], strict=True):
        for key in ("loss", "rewards/accuracies", "rewards/margins", "rewards/mean"):
            assert entry[key] == pytest.approx(one[key], abs=1e-5), key
    for name, tensor in weights(alone.folder).items():
        torch.testing.assert_close(weights(both.folder)[name], tensor, atol=1e-6, rtol=1e-5)
    # 12 records: 3 micro-batches a rank, the second step is short
    assert (
        [rank["loss_calls"] for rank in both.receipt["ranks"]] == [both.receipt["expected_loss_calls"]] * 2 == [3, 3]
    )
    assert both.receipt["records"] == alone.receipt["records"]
    results = [json.loads((folder / "all_results.json").read_text()) for folder in (alone.folder, both.folder)]
    for key in ("eval_loss", "eval_rewards/accuracies", "eval_calibration/ece", "eval_rewards/mean"):
        assert results[0][key] == pytest.approx(results[1][key], abs=1e-5), key
    scores = [scores_file(folder) for folder in (alone.folder, both.folder)]
    assert list(scores[0]) == list(scores[1]) == [record["id"] for record in ranked()]
    for record_id, line in scores[0].items():
        assert line["rewards"] == pytest.approx(scores[1][record_id]["rewards"], abs=1e-5)


@pytest.mark.parametrize("finetuning_type", ["lora", "full"])
@pytest.mark.parametrize("pooling", ["last", "eos"])
def test_predicted_scores_are_those_of_the_hosts_api_on_the_adapter_and_on_the_exported_model(
    apo, tmp_path, tiny_model, finetuning_type, pooling
):
    from fastapi.testclient import TestClient
    from llamafactory.api.app import create_app
    from llamafactory.chat import ChatModel
    from llamafactory.train.tuner import export_model

    records = ranked()
    done = apo(
        finetuning_type=finetuning_type, apo_pooling=pooling, eval_dataset="lists", do_predict=True, max_steps=3
    )
    texts = [text_of(r["prompt"], response, pooling) for r in records for response in r["responses"]]
    predicted = [reward for r in records for reward in scores_file(done.folder)[r["id"]]["rewards"]]
    trained = (
        {"model_name_or_path": str(tiny_model), "adapter_name_or_path": str(done.folder)}
        if finetuning_type == "lora"
        else {"model_name_or_path": str(done.folder)}
    )
    exported = str(tmp_path / "exported")
    export_model(trained | {"stage": "rm", "template": "chatml", "export_dir": exported, "infer_dtype": "float32"})
    for place in (trained, {"model_name_or_path": exported}):
        chat = ChatModel({"stage": "rm", "template": "chatml", **place})
        api = TestClient(create_app(chat))
        answer = api.post("/v1/score/evaluation", json={"model": "reward", "messages": texts})
        assert answer.json()["scores"] == pytest.approx(predicted, abs=1e-4)


def test_the_export_recipe_writes_decoder_and_value_head_under_the_carriers_name_and_ours(apo, recipe, tmp_path):
    from llamafactory.train.tuner import export_model
    from transformers import AutoModelForCausalLM

    done = apo(finetuning_type="lora")
    wanted = ("model_name_or_path", "template", "stage", "export_dir", "export_device", "export_size")
    for overrides in ({}, {"stage": "apo_rm"}):
        folder = tmp_path / f"merged-{len(overrides)}"
        settings = recipe("apo_rm_export", export_dir=str(folder), **overrides)
        export_model({key: settings[key] for key in wanted} | {"adapter_name_or_path": str(done.folder)})
        head = weights(done.folder)["v_head.summary.weight"]
        assert torch.equal(weights(folder)["v_head.summary.weight"], head)
        AutoModelForCausalLM.from_pretrained(folder)


def test_a_full_run_on_a_model_with_tied_embeddings_saves_resumes_and_loads(apo, tiny_model, tmp_path):
    """The host's own RM fails at the save: it looks for the same tensor, not for the same storage."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    tied = tmp_path / "tied"
    config = AutoConfig.from_pretrained(tiny_model)
    config.tie_word_embeddings = True
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tied)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tied)
    common = {"model_name_or_path": str(tied), "finetuning_type": "full", "max_steps": 4, "save_steps": 2}
    whole = apo(output_dir=str(tmp_path / "whole"), **common)
    checkpoint = str(whole.folder / "checkpoint-2")
    again = apo(output_dir=str(tmp_path / "again"), resume_from_checkpoint=checkpoint, **common)
    for name, tensor in weights(whole.folder).items():
        assert torch.equal(tensor, weights(again.folder)[name]), name
    loaded = AutoModelForCausalLM.from_pretrained(whole.folder)
    assert loaded.lm_head.weight.data_ptr() == loaded.model.embed_tokens.weight.data_ptr()
    assert rewards_by_transformers(whole.folder, ranked(1))


def test_an_unfinished_folder_of_a_full_run_goes_on_by_itself(apo, tmp_path):
    """The host does so for its other stages; for reward models it forgets the checkpoint (card parse-train-args)."""
    common = {"finetuning_type": "full", "save_steps": 2, "lr_scheduler_type": "constant"}
    whole = apo(output_dir=str(tmp_path / "whole"), max_steps=4, **common)
    apo(output_dir=str(tmp_path / "half"), max_steps=2, **common)
    again = apo(output_dir=str(tmp_path / "half"), max_steps=4, overwrite_output_dir=False, **common)
    assert again.receipt["first_step"] == 2
    for name, tensor in weights(whole.folder).items():
        assert torch.equal(tensor, weights(again.folder)[name]), name


def test_gradient_checkpointing_changes_no_weight(apo, start, tmp_path):
    runs = []
    for off in (False, True):
        common = {"model_name_or_path": str(start), "finetuning_type": "full", "output_dir": str(tmp_path / str(off))}
        runs.append(weights(apo(disable_gradient_checkpointing=off, **common).folder))
    for name, tensor in runs[0].items():
        assert torch.equal(tensor, runs[1][name]), name


def test_without_human_records_a_model_trains_on_golden_answers_and_is_evaluated_on_people(apo, tmp_path):
    """The paper's run without the KL term: its coefficient is 0, which only the records to train on must not have."""
    adversarial = [record for record in ranked() if "kind" in record]
    human = [record for record in ranked() if "kind" not in record]
    write_rows(tmp_path / "ranked", human, name="people", formatting="ranked")
    for loss in ("ranking", "wgan"):
        done = apo(adversarial, eval_dataset="people", do_eval=True, apo_kl_coeff=0.0, apo_loss=loss, max_steps=1)
        assert done.receipt["records"] == {"human": 0, "apo": 4}
        found = json.loads((done.folder / "eval_results.json").read_text())
        assert "eval_rewards/accuracies/human" in found
        assert "eval_rewards/accuracies/apo" not in found
        assert found["eval_loss"] == 0


def test_pairs_and_lists_of_both_kinds_mix_from_several_data_sets(apo, tmp_path):
    pairs = [
        {"id": f"pair-{i}", "prompt": f"{i}?", "chosen": "Yes, so it is.", "rejected": "no"}
        | ({"margin": 1.5 + i} if i % 2 else {})
        for i in range(6)
    ]
    folder = write_rows(tmp_path / "ranked", pairs, name="pairs", formatting="pair")
    nine = {"id": "nine", "prompt": "Which?", "responses": [*"abcdefghi"], "scores": [k / 4 for k in range(9)]}
    common = {"dataset": "lists,pairs", "eval_dataset": "pairs,lists", "do_predict": True}
    done = apo([*ranked(), nine], max_steps=-1, num_train_epochs=1.0, **common)
    assert done.receipt["records"] == {"human": 15, "apo": 4}
    assert done.receipt["rows"]["in_training_set"] == 19
    lines = scores_file(folder.parent / "out")
    for i, pair in enumerate(pairs):
        assert lines[pair["id"]]["scores"] == [pair.get("margin", 1.0), 0.0], i
    for record in [*ranked(), nine]:
        assert lines[record["id"]]["scores"] == record["scores"]
        assert lines[record["id"]]["kind"] == record.get("kind", "human")
        assert len(lines[record["id"]]["rewards"]) == len(record["responses"])


@pytest.mark.parametrize("batch", [1, 3, 12])
def test_rewards_stay_with_their_record_whatever_is_beside_it_in_the_batch(start, sums, tmp_path, batch):
    """Lists of two to four responses, some pairs without a margin: no shift, no broadcast."""
    records = ranked()
    expected = rewards_by_transformers(start, records)
    from llamafactory.train.tuner import run_exp

    run_exp(
        {
            "stage": "apo_rm",
            "do_predict": True,
            "finetuning_type": "full",
            "model_name_or_path": str(start),
            "template": "chatml",
            "dataset_dir": str(sums),
            "eval_dataset": "lists",
            "per_device_eval_batch_size": batch,
            "output_dir": str(tmp_path / "scored"),
            "report_to": "none",
        }
    )
    lines = scores_file(tmp_path / "scored")
    assert [*lines] == [record["id"] for record in records]
    for record, rewards in zip(records, expected, strict=True):
        assert lines[record["id"]]["rewards"] == pytest.approx(rewards, abs=1e-5)


def test_training_raises_held_out_accuracy_and_lowers_the_calibration_error(apo, tmp_path):
    folder = write_rows(tmp_path / "ranked", ranked(24, start=40), name="held_out", formatting="ranked")
    assert folder.exists()
    done = apo(
        ranked(36),
        eval_dataset="held_out",
        eval_strategy="steps",
        eval_steps=20,
        eval_on_start=True,
        do_eval=True,
        plot_loss=True,
        finetuning_type="full",
        max_steps=40,
        per_device_train_batch_size=6,
        learning_rate=5e-3,
        lr_scheduler_type="constant",
    )
    evaluations = [entry for entry in done.log if "eval_loss" in entry]
    first, last = evaluations[0], evaluations[-1]
    assert last["eval_rewards/accuracies"] > max(0.9, first["eval_rewards/accuracies"] + 0.1)
    assert last["eval_calibration/ece"] < first["eval_calibration/ece"]
    assert last["eval_loss"] < 0.5 * first["eval_loss"]
    assert {f"eval_rewards/accuracies/gap_{gap}" for gap in ("0.5", "1.5", "2", "3")} <= last.keys()
    assert {"eval_rewards/accuracies/human", "eval_rewards/accuracies/apo", "eval_rewards/mean"} <= last.keys()
    for name in ("eval_reliability", "training_rewards_accuracies", "training_eval_calibration_ece"):
        assert (done.folder / f"{name}.png").stat().st_size > 1000
    forwarded = [json.loads(line) for line in (done.folder / "trainer_log.jsonl").read_text().splitlines()]
    assert any("accuracy" in entry for entry in forwarded)


def test_evaluation_does_not_depend_on_the_batch_size(apo, start, tmp_path):
    results = []
    for size in (1, 5, 12):
        done = apo(
            model_name_or_path=str(start),
            learning_rate=0.0,
            max_steps=1,
            eval_dataset="lists",
            do_eval=True,
            per_device_eval_batch_size=size,
            output_dir=str(tmp_path / str(size)),
        )
        found = json.loads((done.folder / "eval_results.json").read_text())
        results.append({key: value for key, value in found.items() if "second" not in key and "runtime" not in key})
    for other in results[1:]:
        assert other == pytest.approx(results[0], abs=1e-5)


def test_sequences_are_cut_from_the_left_and_counted(apo, start, tmp_path):
    """The prompt's start goes, as many tokens for every response as the longest one needs."""
    from transformers import AutoTokenizer

    records = ranked(3)
    records[1]["prompt"] = "Well, well. " * 30 + records[1]["prompt"]
    done = apo(records, cutoff_len=64, max_steps=1)
    assert done.receipt["rows"]["cut"] == {"prompt": 1}
    from finepref.formats.records import parse
    from finepref.hosts.llamafactory.ranked_data import RankedProcessor, sequences_of
    from llamafactory.data import TEMPLATES

    tokenizer = AutoTokenizer.from_pretrained(start)
    data_args = SimpleNamespace(cutoff_len=64, streaming=False)
    processor = RankedProcessor(
        template=TEMPLATES["chatml"],
        tokenizer=tokenizer,
        processor=None,
        data_args=data_args,
        overlong="truncate_left",
    )
    row = processor.row(parse(records[1], "ranked"), "lists.jsonl:2", 1)
    sequences = sequences_of(row)
    assert max(map(len, sequences)) == 64
    kept = set()
    for response, ids, last, end in zip(records[1]["responses"], sequences, row["last"], row["end"], strict=True):
        whole = tokenizer(text_of(records[1]["prompt"], response, "eos") + "\n")["input_ids"]
        assert ids == whole[-len(ids) :]
        ending = len(tokenizer(f"{response}<|im_end|>\n")["input_ids"])
        kept.add(len(ids) - ending)
        assert ids[end] == tokenizer.eos_token_id
        assert last == end - 1
    assert len(kept) == 1  # the same tokens of the prompt


def test_training_metrics_are_over_all_micro_batches_of_an_entry(apo):
    """Six steps of two records, one entry: its accuracies are shares of all human pairs and of the 4 apo pairs."""
    done = apo(max_steps=6, logging_steps=6, learning_rate=0.0)
    entry = next(entry for entry in done.log if "loss" in entry)
    human = [record for record in ranked() if "kind" not in record]
    pairs = sum(len(r["responses"]) * (len(r["responses"]) - 1) // 2 for r in human)
    human_right, apo_right = entry["rewards/accuracies/human"] * pairs, entry["rewards/accuracies/apo"] * 4
    for right in (human_right, apo_right):
        assert right == pytest.approx(round(right), abs=1e-6)
    assert entry["rewards/accuracies"] == pytest.approx((human_right + apo_right) / (pairs + 4))
