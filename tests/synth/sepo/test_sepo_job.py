"""`finepref sepo score`: what it writes, how it goes on, and how ranks share it."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from finepref.cli import app
from finepref.formats.check import check_file, read_records
from finepref.formats.jsonl import read_jsonl, write_jsonl
from finepref.formats.problems import BadData
from finepref.formats.scores import prompt_digest
from finepref.formats.sepo_csv import read_sepo_csv
from finepref.synth.encoding import Template, by_prompt_and_end_token
from finepref.synth.journal import JournalChanged
from finepref.synth.scorers import hf as scoring
from finepref.synth.scorers.hf import HfScorer
from finepref.synth.scorers.ray import RayScorer
from finepref.synth.scorers.vllm import VllmScorer
from finepref.synth.sepo import score as sepo
from pyarrow import parquet
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner
from usage_errors import unboxed

PAIRS = [
    {"id": "one", "prompt": "How many are there?", "chosen": "There are 12 of them.", "rejected": "There are 13."},
    {"id": "two", "prompt": "Why?", "chosen": "Because it is so.", "rejected": "No."},
    {"id": "three", "prompt": "x" * 60, "chosen": "A long question.", "rejected": "A long one, to be sure."},
    {"id": "four", "prompt": "And now?", "system": "Be brief.", "chosen": "Now this ends.", "rejected": "Now é that."},
]


@pytest.fixture(scope="module")
def oracle(tiny_model, tmp_path_factory):
    """The tiny model with every weight moved a little."""
    folder = tmp_path_factory.mktemp("oracle")
    shutil.copytree(tiny_model, folder, dirs_exist_ok=True)
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def pairs(tmp_path):
    path = tmp_path / "pairs.jsonl"
    write_jsonl(path, PAIRS)
    return path


def scored(pairs, output, oracle, reference, *, limits=(), scorer=HfScorer, oracle_scorer=HfScorer, **options):
    return sepo.score(
        pairs,
        output,
        oracle=oracle_scorer(str(oracle), batch_tokens=64),
        reference=scorer(str(reference), batch_tokens=64),
        limits=sepo.Limits(**dict(limits)),
        **options,
    )


def reward_alone(oracle, reference, dialogue, text):
    """log pi_oracle - log pi_ref of each byte of the text and the end token, by two plain forwards in float64."""
    tokenizer = AutoTokenizer.from_pretrained(reference)
    before, ids = tokenizer(dialogue)["input_ids"], tokenizer(f"{text}</s>")["input_ids"]
    logps = []
    for folder in (oracle, reference):
        model = AutoModelForCausalLM.from_pretrained(folder).double()
        with torch.no_grad():
            logits = model(torch.tensor([before + ids])).logits[0].log_softmax(-1)
        logps.append([logits[len(before) + i - 1][token].item() for i, token in enumerate(ids)])
    return [a - b for a, b in zip(*logps, strict=True)]


def contents(output):
    return [output.with_suffix(suffix).read_bytes() for suffix in (".jsonl", ".parquet", ".report.json")]


def test_every_token_has_the_difference_of_two_plain_forwards_in_all_three_files(pairs, oracle, tiny_model, tmp_path):
    output = tmp_path / "scores.jsonl"
    outcome = scored(pairs, output, oracle, tiny_model, csv_share=0.3)
    assert (outcome.scored, dict(outcome.dropped)) == (4, {})
    assert check_file(output, "scored_pair").total_problems == 0
    records = read_records(output, "scored_pair")
    assert [record.id for record in records] == ["one", "two", "three", "four"]
    table = parquet.read_table(output.with_suffix(".parquet")).to_pylist()
    for record, row, given in zip(records, table, PAIRS, strict=True):
        system = f"<system>{given['system']}</s>" if "system" in given else ""
        dialogue = f"{system}<user>{given['prompt']}</s><assistant>"
        for side in ("chosen", "rejected"):
            expected = reward_alone(oracle, tiny_model, dialogue, given[side])
            scores = getattr(record, f"{side}_scores")
            assert scores == pytest.approx(expected, abs=1e-5)
            assert [
                a - b for a, b in zip(row[f"{side}_oracle"], row[f"{side}_reference"], strict=True)
            ] == pytest.approx(scores, abs=1e-6)
            assert len(row[f"{side}_tokens"]) == len(given[side].encode()) + 1
            assert getattr(record, f"{side}_offsets")[-1] == (len(given[side]), len(given[side]))
        assert (row["id"], row["tokenizer"]) == (record.id, record.tokenizer)


def test_the_released_csv_names_the_tokens_before_the_best_and_the_worst(pairs, oracle, tiny_model, tmp_path):
    output = tmp_path / "scores.jsonl"
    scored(pairs, output, oracle, tiny_model, csv_share=0.3, limits={"min_response": 5})
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)

    def tokenize(text):
        encoded = tokenizer(text, return_offsets_mapping=True)
        return encoded["input_ids"], encoded["offset_mapping"]

    rows = list(read_sepo_csv(output.with_suffix(".csv"), tokenize))
    assert [row.problems for row in rows] == [[]] * 3
    for row, record in zip(rows, read_records(output, "scored_pair"), strict=True):
        (pair,) = row.records
        rewards = record.chosen_scores[1:]
        count = max(1, int(0.3 * len(rewards)))
        best = sorted(range(len(rewards)), key=lambda i: -rewards[i])[:count]
        expected = {record.chosen_offsets[i + 1] for i in best if i + 2 < len(record.chosen_scores)}
        marked = {i for span in pair.chosen_spans for i in range(span.start, span.end)}
        assert marked == {i for start, end in expected for i in range(start, end)}


def test_limits_leave_out_and_list(pairs, oracle, tiny_model, tmp_path):
    """Prompts are `<user>` + n + `</s><assistant>` = n + 18 tokens, 78 of three; `No.` and its end token are 4."""
    output = tmp_path / "scores.jsonl"
    outcome = scored(pairs, output, oracle, tiny_model, limits={"max_prompt": 77, "min_response": 5})
    assert (outcome.scored, dict(outcome.dropped)) == (2, {"short_response": 1, "long_prompt": 1})
    report = json.loads(output.with_suffix(".report.json").read_text())
    assert report["dropped_records"] == [
        {"id": "two", "reason": "short_response", "tokens": {"prompt": 22, "chosen": 18, "rejected": 4}},
        {"id": "three", "reason": "long_prompt", "tokens": {"prompt": 78, "chosen": 17, "rejected": 24}},
    ]
    assert (report["records"], report["scored"]) == (4, 2)


@pytest.mark.parametrize(("limit", "left"), [(102, 4), (101, 3)])
def test_a_total_counts_the_prompt_and_the_longer_response(pairs, oracle, tiny_model, tmp_path, limit, left):
    """Three has 78 + 24 = 102."""
    assert scored(pairs, tmp_path / "s.jsonl", oracle, tiny_model, limits={"max_total": limit}).scored == left


def test_what_is_longer_than_the_context_is_left_out(oracle, tiny_model, tmp_path):
    source = tmp_path / "long.jsonl"
    write_jsonl(source, [PAIRS[0], PAIRS[1] | {"chosen": "a" * 250}])
    outcome = scored(source, tmp_path / "s.jsonl", oracle, tiny_model)
    assert (outcome.scored, dict(outcome.dropped)) == (1, {"context": 1})


def test_two_ranks_write_the_bytes_of_one_and_the_last_one_writes_them(pairs, oracle, tiny_model, tmp_path):
    scored(pairs, tmp_path / "one.jsonl", oracle, tiny_model)
    output = tmp_path / "two.jsonl"
    assert scored(pairs, output, oracle, tiny_model, rank=1, world=2).scored is None
    assert not output.exists()
    assert scored(pairs, output, oracle, tiny_model, rank=0, world=2).scored == 4
    assert contents(output) == contents(tmp_path / "one.jsonl")


class StopsAfterABatch(HfScorer):
    def logps(self, items, *, done=()):
        yield next(super().logps(items, done=done))
        raise KeyboardInterrupt


def test_an_interrupted_run_resumes_with_what_is_left(pairs, oracle, tiny_model, tmp_path, monkeypatch):
    scored(pairs, tmp_path / "calm.jsonl", oracle, tiny_model)
    output = tmp_path / "cut.jsonl"
    with pytest.raises(KeyboardInterrupt):
        scored(pairs, output, oracle, tiny_model, scorer=StopsAfterABatch)
    assert not output.exists()
    read = []
    whole = HfScorer.logps
    monkeypatch.setattr(
        HfScorer, "logps", lambda self, *a, **k: (read.append((self.name, len(b))) or b for b in whole(self, *a, **k))
    )
    assert scored(pairs, output, oracle, tiny_model).scored == 4
    assert sum(count for _, count in read) == 3
    assert {name for name, _ in read} == {str(tiny_model)}
    assert contents(output) == contents(tmp_path / "calm.jsonl")


def test_other_settings_are_refused_by_name(pairs, oracle, tiny_model, tmp_path):
    scored(pairs, tmp_path / "s.jsonl", oracle, tiny_model)
    with pytest.raises(JournalChanged, match="min_response"):
        scored(pairs, tmp_path / "s.jsonl", oracle, tiny_model, limits={"min_response": 5})


def test_another_engine_is_refused_by_name_and_another_option_of_it_is_another_engine(
    pairs, oracle, tiny_model, tmp_path
):
    scored(pairs, tmp_path / "s.jsonl", oracle, tiny_model)
    with pytest.raises(JournalChanged, match=r"model: 'hf:.*:auto' there, 'vllm:.*:auto' now"):
        scored(pairs, tmp_path / "s.jsonl", oracle, tiny_model, oracle_scorer=VllmScorer)
    names = {VllmScorer("a", **more).model for more in ({}, {"dtype": "float32"}, {"options": {"max_model_len": 8}})}
    assert names == {"vllm:a:auto", "vllm:a:float32", 'vllm:a:auto:{"max_model_len": 8}'}


def test_an_oracle_with_another_tokenizer_is_refused(pairs, oracle, tiny_model, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(oracle, other)
    content = json.loads((other / "tokenizer.json").read_text())
    content["pre_tokenizer"]["add_prefix_space"] = True
    (other / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"tokenizers of .* differ"):
        scored(pairs, tmp_path / "s.jsonl", other, tiny_model)


def test_a_model_that_gives_nan_stops_the_job_and_names_the_record(pairs, tiny_model, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(tiny_model, broken)
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    model.model.norm.weight.data[0] = torch.nan
    model.save_pretrained(broken)
    with pytest.raises(ValueError, match=r"broken gives no number for record (one|two|three|four)"):
        scored(pairs, tmp_path / "s.jsonl", broken, tiny_model)
    assert not (tmp_path / "s.jsonl").exists()


def test_bad_data_is_told_before_a_model_is_loaded(tmp_path):
    source = tmp_path / "bad.jsonl"
    write_jsonl(source, [{"prompt": "?", "chosen": "a"}])
    with pytest.raises(BadData, match="FP010"):
        scored(source, tmp_path / "s.jsonl", "/nowhere", "/nowhere")


def test_the_command_scores_shares_work_by_rank_and_says_what_it_did(pairs, oracle, tiny_model, tmp_path, monkeypatch):
    output = tmp_path / "scores.jsonl"
    command = (
        f"sepo score {pairs} --output {output} --reference {tiny_model} --oracle {oracle} --min-response 5".split()
    )
    monkeypatch.setenv("WORLD_SIZE", "2")
    told = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, result.output
        told.append(result.stdout.splitlines()[-1])
    assert told == [
        f"rank 0 of 2 is done; the last rank to finish writes {output} (left out: none)",
        f"{output}: 3 scored pairs (left out: 1 short_response)",
    ]
    assert len(list(read_jsonl(output, problems=None))) == 3


def test_the_command_asks_for_an_oracle(pairs, tiny_model, tmp_path):
    result = CliRunner().invoke(app, ["sepo", "score", str(pairs), "--output", "o", "--reference", str(tiny_model)])
    assert (result.exit_code, result.stderr) == (1, "the oracle is missing: give --oracle, --oracle-adapter or both\n")


@pytest.mark.parametrize("option", ["--reference", "--oracle", "--oracle-adapter"])
def test_a_folder_that_is_not_there_is_named_before_anything_is_read(tiny_model, tmp_path, option):
    models = {"--reference": str(tiny_model), "--oracle": str(tiny_model)} | {option: "saves/lora/nowhere"}
    given = [word for pair in models.items() for word in pair]
    (tmp_path / "pairs.jsonl").write_text("not read\n")
    command = [
        "sepo",
        "score",
        str(tmp_path / "pairs.jsonl"),
        "--format",
        "pair",
        "--output",
        str(tmp_path / "o.jsonl"),
    ]
    result = CliRunner().invoke(app, [*command, *given])
    assert (result.exit_code, result.stderr.strip()) == (1, "there is no model folder 'saves/lora/nowhere'")


@pytest.mark.parametrize(
    ("ranks", "options", "message"),
    [
        ("1", ["--vllm-options", "a: 1"], "--vllm-options are for --engine vllm"),
        ("1", ["--engine", "vllm", "--vllm-options", "[1]"], "--vllm-options '[1]' is not a mapping"),
        (
            "1",
            ["--engine", "vllm", "--vllm-options", "dtype: float32"],
            "vLLM's dtype cannot be set by options",
        ),
        (
            "2",
            ["--engine", "vllm"],
            "--engine vllm does not work under torchrun: use --vllm-options {tensor_parallel_size: N}",
        ),
        ("1", ["--engine", "vllm"], "No module named 'vllm'"),
        ("1", ["--engine", "vllm", "--device-map", "auto"], "--device-map is for --engine hf"),
        ("2", ["--device-map", "auto"], "--device-map takes all GPUs for one process"),
        ("1", ["--device-map", "auto", "--workers", "2"], "--device-map with --workers needs --worker-gpus"),
    ],
)
def test_the_command_says_what_an_engine_cannot_be_told(
    pairs, oracle, tiny_model, tmp_path, monkeypatch, ranks, options, message
):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
    output = tmp_path / "scores.jsonl"
    command = f"sepo score {pairs} --output {output} --reference {tiny_model} --oracle {oracle}".split()
    result = CliRunner().invoke(app, [*command, *options])
    assert result.exit_code == 1
    assert result.stderr.startswith(message)
    assert not output.exists()


def test_the_command_scores_with_a_lora_adapter_as_with_its_weights_added(pairs, tiny_model, tmp_path):
    """W + (alpha / r) B A with alpha 4, r 2, for the query projections; no oracle is named, so it is the reference."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(2)
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    adapted = get_peft_model(model, LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj"], init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapter")
    low = {name: value for name, value in adapted.state_dict().items() if ".lora_" in name}
    merged = AutoModelForCausalLM.from_pretrained(tiny_model)
    with torch.no_grad():
        for number, layer in enumerate(merged.model.layers):
            start = f"base_model.model.model.layers.{number}.self_attn.q_proj.lora"
            layer.self_attn.q_proj.weight += 2 * low[f"{start}_B.default.weight"] @ low[f"{start}_A.default.weight"]
    shutil.copytree(tiny_model, tmp_path / "merged")
    merged.save_pretrained(tmp_path / "merged")
    output = tmp_path / "scores.jsonl"
    command = f"sepo score {pairs} --output {output} --reference {tiny_model} --oracle-adapter {tmp_path / 'adapter'}"
    result = CliRunner().invoke(app, command.split())
    assert result.exit_code == 0, result.output
    first = next(row for _, row in read_jsonl(output, problems=None))
    expected = reward_alone(
        tmp_path / "merged", tiny_model, "<user>How many are there?</s><assistant>", PAIRS[0]["chosen"]
    )
    assert max(map(abs, expected)) > 0.01
    assert first["chosen_scores"] == pytest.approx(expected, abs=2e-5)


def test_every_record_names_its_template_and_the_digest_of_its_whole_prompt(pairs, oracle, tiny_model, tmp_path):
    output = tmp_path / "scores.jsonl"
    scored(pairs, output, oracle, tiny_model, limits={"cutoff_len": 60, "overlong": "truncate_left"})
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    for record in read_records(output, "scored_pair"):
        given = next(pair for pair in PAIRS if pair["id"] == record.id)
        system = f"<system>{given['system']}</s>" if "system" in given else ""
        ids = tokenizer(f"{system}<user>{given['prompt']}</s><assistant>")["input_ids"]
        assert record.template == "the tokenizer's chat template"
        assert record.prompt_digest == prompt_digest(ids)


def text_of(count):
    """A response of `count` tokens, the end token included."""
    return ("abcdefghij" * 9)[: count - 1]


LONG = [
    {"id": "fits", "prompt": "p" * 10, "chosen": text_of(12), "rejected": text_of(5)},  # prompt of 28 tokens
    {"id": "long prompt", "prompt": "p" * 42, "chosen": text_of(8), "rejected": text_of(6)},  # of 60
    {"id": "long response", "prompt": "p", "chosen": text_of(60), "rejected": text_of(6)},  # of 19
    {"id": "equal", "prompt": "p", "chosen": text_of(60), "rejected": text_of(70)},
]


@pytest.mark.parametrize(
    ("policy", "kept", "left_out", "cut"),
    [
        # LLaMA-Factory: 60 + 8 of 40 keeps 40 - 8 of the prompt; 19 + 60 of 40 keeps all 19 and 21 of the response
        ("host", {"fits": (28, 12), "long prompt": (32, 8), "long response": (19, 21)}, {"equal": 1}, (1, 1)),
        ("keep_prompt", {"fits": (28, 12), "long response": (19, 21)}, {"equal": 1, "no room": 1}, (0, 1)),
        ("truncate_left", {"fits": (28, 12), "long prompt": (32, 8), "long response": (1, 39)}, {"equal": 1}, (2, 1)),
        ("skip", {"fits": (28, 12)}, {"overlong": 3}, (0, 0)),
    ],
)
def test_what_is_too_long_is_cut_before_a_model_reads_it(
    oracle, tiny_model, tmp_path, monkeypatch, policy, kept, left_out, cut
):
    source = tmp_path / "long.jsonl"
    write_jsonl(source, LONG)
    seen = {}
    whole = HfScorer.logps

    def spied(self, items, *, done=()):
        items = list(items)
        seen.update({item.id: (len(item.prompt), len(item.responses["chosen"])) for item in items})
        return whole(self, items, done=done)

    monkeypatch.setattr(HfScorer, "logps", spied)
    limits = {"cutoff_len": 40, "overlong": policy}
    outcome = scored(source, tmp_path / "s.jsonl", oracle, tiny_model, limits=limits, csv_share=0.5)
    assert seen == kept
    reasons = {"equal": "equal_after_cut", "no room": "no_room_for_response", "overlong": "overlong"}
    assert outcome.dropped == {reasons[name]: count for name, count in left_out.items()}
    assert (outcome.cut.get("prompt", 0), outcome.cut.get("response", 0)) == cut
    assert outcome.scored == len(kept)
    report = json.loads((tmp_path / "s.report.json").read_text())
    assert {row["id"] for row in report["dropped_records"]} == {row["id"] for row in LONG} - kept.keys()
    assert report["cut"] == {name: count for name, count in zip(("prompt", "response"), cut, strict=True) if count}
    rows = list(read_sepo_csv(tmp_path / "s.csv", tokenize_by(tiny_model)))
    assert [row.problems for row in rows] == [[]] * len(kept)


def tokenize_by(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def tokenize(text):
        encoded = tokenizer(text, return_offsets_mapping=True)
        return encoded["input_ids"], encoded["offset_mapping"]

    return tokenize


def test_the_scores_of_a_cut_record_are_those_of_what_is_left_of_it(oracle, tiny_model, tmp_path):
    source = tmp_path / "long.jsonl"
    write_jsonl(source, LONG[1:3])
    limits = {"cutoff_len": 40, "overlong": "truncate_left"}
    scored(source, tmp_path / "s.jsonl", oracle, tiny_model, limits=limits)
    first, second = read_records(tmp_path / "s.jsonl", "scored_pair")
    ids = AutoTokenizer.from_pretrained(tiny_model)(f"<user>{'p' * 42}</s><assistant>")["input_ids"]
    kept = AutoTokenizer.from_pretrained(tiny_model).decode(ids[-32:])
    assert first.chosen_scores == pytest.approx(reward_alone(oracle, tiny_model, kept, text_of(8)), abs=1e-5)
    whole = reward_alone(oracle, tiny_model, ">", text_of(60))
    assert second.chosen_scores == pytest.approx(whole[:39], abs=1e-5)
    assert second.chosen_offsets == tuple((i, i + 1) for i in range(39))


def test_a_record_that_is_too_long_can_be_an_error_that_names_its_line(oracle, tiny_model, tmp_path):
    source = tmp_path / "long.jsonl"
    write_jsonl(source, LONG)
    limits = {"cutoff_len": 40, "overlong": "error"}
    with pytest.raises(BadData) as caught:
        scored(source, tmp_path / "s.jsonl", oracle, tiny_model, limits=limits)
    assert [(p.line, p.code, p.field) for p in caught.value.problems] == [(n, "FP203", "prompt") for n in (2, 3, 4)]
    assert "--cutoff-len 40" in str(caught.value)


NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"


@pytest.fixture
def without_system(tiny_model, oracle, tmp_path):
    """Both models with a chat template that refuses a system turn."""
    folders = []
    for folder in (tiny_model, oracle):
        own = tmp_path / f"no-system-{folder.name}"
        shutil.copytree(folder, own)
        tokenizer = AutoTokenizer.from_pretrained(own)
        tokenizer.chat_template = NO_SYSTEM + tokenizer.chat_template
        tokenizer.save_pretrained(own)
        folders.append(own)
    return folders


def test_a_system_turn_that_the_template_refuses_is_named_or_left_out(pairs, without_system, tmp_path):
    reference, oracle = without_system
    output = tmp_path / "scores.jsonl"
    command = f"sepo score {pairs} --output {output} --reference {reference} --oracle {oracle}".split()
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 1
    assert f"FP240 {pairs}:4 system: " in result.stderr
    assert "System role not supported" in result.stderr
    result = CliRunner().invoke(app, [*command, "--bad-rows", "skip", "--max-bad", "30%"])
    assert result.exit_code == 0, result.output
    assert [record.id for record in read_records(output, "scored_pair")] == ["one", "two", "three"]
    (rejected,) = (row for _, row in read_jsonl(tmp_path / "scores.jsonl.rejected.jsonl", problems=None))
    assert (rejected["line"], rejected["problems"][0]["code"]) == (4, "FP240")


def test_several_ranks_count_the_same_good_rows(pairs, without_system, tmp_path, monkeypatch):
    reference, oracle = without_system
    rows = [*PAIRS[3:], *(row | {"id": f"{row['id']} {n}"} for n in range(2) for row in PAIRS[:3])]
    write_jsonl(pairs, rows)
    output = tmp_path / "scores.jsonl"
    command = f"sepo score {pairs} --output {output} --reference {reference} --oracle {oracle} --bad-rows skip"
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        result = CliRunner().invoke(app, [*command.split(), "--max-bad", "20%"])
        assert result.exit_code == 0, result.output
    found = read_records(output, "scored_pair")
    assert [record.id for record in found] == [row["id"] for row in rows[1:]]


def test_ranks_agree_on_what_is_refused_for_its_length(oracle, tiny_model, tmp_path, monkeypatch):
    source, output = tmp_path / "long.jsonl", tmp_path / "scores.jsonl"
    write_jsonl(source, [LONG[1], *(LONG[0] | {"id": str(n)} for n in range(5))])
    command = f"sepo score {source} --output {output} --reference {tiny_model} --oracle {oracle} --cutoff-len 40"
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        words = ["--overlong", "error", "--bad-rows", "skip", "--max-bad", "20%"]
        result = CliRunner().invoke(app, [*command.split(), *words])
        assert result.exit_code == 0, result.output
    assert [record.id for record in read_records(output, "scored_pair")] == [str(n) for n in range(5)]


def with_a_thought(folder):
    """A template that begins each response with a thought, as LLaMA-Factory's templates of thinking models do."""
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def encode(prompt, text):
        whole = by_prompt_and_end_token(tokenizer)(prompt, text)
        thought = tokenizer("<t>")["input_ids"]
        return whole._replace(response=[*thought, *whole.response], start=len(thought))

    return encode


def test_what_a_template_writes_before_a_text_is_read_but_not_scored(pairs, oracle, tiny_model, tmp_path):
    template = Template("thinking", lambda tokenizer: with_a_thought(tiny_model))
    scored(pairs, tmp_path / "s.jsonl", oracle, tiny_model, template=template)
    first = read_records(tmp_path / "s.jsonl", "scored_pair")[0]
    dialogue = "<user>How many are there?</s><assistant><t>"
    assert first.chosen_scores == pytest.approx(reward_alone(oracle, tiny_model, dialogue, first.chosen), abs=1e-5)
    assert len(first.chosen_scores) == len(first.chosen_offsets) == len(first.chosen) + 1
    table = parquet.read_table(tmp_path / "s.parquet").to_pylist()
    assert len(table[0]["chosen_tokens"]) == len(first.chosen_scores) == len(table[0]["chosen_oracle"])


@pytest.mark.parametrize(
    ("change", "code", "field"),
    [
        (lambda tokens, text: tokens._replace(start=-1), "FP211", "chosen"),
        (lambda tokens, text: tokens._replace(prompt=[*tokens.prompt, len(text)]), "FP211", "prompt"),
        (lambda tokens, text: tokens._replace(prompt=[*tokens.prompt, 10**6]), "FP251", ""),
    ],
)
def test_a_template_that_does_not_fit_is_told_before_a_model_is_loaded(
    pairs, oracle, tiny_model, tmp_path, monkeypatch, change, code, field
):
    monkeypatch.setattr(HfScorer, "loaded", lambda *arguments: pytest.fail("a model was loaded"))

    def encoder(tokenizer):
        plain = by_prompt_and_end_token(tokenizer)
        return lambda prompt, text: change(plain(prompt, text), text)

    with pytest.raises(BadData) as caught:
        scored(pairs, tmp_path / "s.jsonl", oracle, tiny_model, template=Template("odd", encoder))
    assert (code, 1, field) in [(p.code, p.line, p.field) for p in caught.value.problems]


def test_zero_scored_pairs_are_a_failure(pairs, oracle, tiny_model, tmp_path):
    command = f"sepo score {pairs} --output {tmp_path / 's.jsonl'} --reference {tiny_model} --oracle {oracle}"
    result = CliRunner().invoke(app, [*command.split(), "--min-response", "99"])
    assert result.exit_code == 1
    assert "no row is left (left out: 4 short_response)" in result.stderr


def test_an_output_that_is_the_input_is_refused(pairs, oracle, tiny_model, tmp_path):
    before = pairs.read_bytes()
    command = f"sepo score {pairs} --output {pairs} --reference {tiny_model} --oracle {oracle}"
    result = CliRunner().invoke(app, command.split())
    assert result.exit_code != 0
    assert "also an input" in unboxed(result.output)
    assert pairs.read_bytes() == before


def test_a_policy_without_a_length_is_refused(pairs, oracle, tiny_model, tmp_path):
    command = f"sepo score {pairs} --output {tmp_path / 's.jsonl'} --reference {tiny_model} --oracle {oracle}"
    result = CliRunner().invoke(app, [*command.split(), "--overlong", "skip"])
    assert (result.exit_code, result.stderr) == (1, "--overlong is for --cutoff-len: give both\n")


def test_the_command_says_how_the_scores_lie(pairs, oracle, tiny_model, tmp_path):
    """Counted again from the file: all scores, and those within 0.01 of 0."""
    output = tmp_path / "s.jsonl"
    command = f"sepo score {pairs} --output {output} --reference {tiny_model} --oracle {oracle}"
    result = CliRunner().invoke(app, command.split())
    assert result.exit_code == 0, result.output
    records = read_records(output, "scored_pair")
    scores = [score for record in records for score in (*record.chosen_scores, *record.rejected_scores)]
    near = sum(abs(score) < 0.01 for score in scores) / len(scores)
    assert f"scores of {len(scores)} tokens: quantiles 5% " in result.stdout
    assert f"{near:.1%} within 0.01 of 0" in result.stdout
    for role in ("oracle", "reference"):
        (line,) = (line for line in result.stdout.splitlines() if line.startswith(f"{role}: "))
        assert " tokens in " in line


def test_the_csv_keeps_the_turns_of_a_dialogue(oracle, tiny_model, tmp_path):
    turns = [("user", "One?"), ("assistant", "Yes."), ("user", "Two?")]
    messages = [{"role": role, "content": text} for role, text in turns]
    system = [{"role": "system", "content": "Be brief."}, *messages]
    odd = [messages[0] | {"content": " One? "}, *messages[1:]]  # white space that the layout cannot hold
    rows = [
        {"id": name, "messages": each, "chosen": "It is two.", "rejected": "It is one."}
        for name, each in (("plain", messages), ("system", system), ("odd", odd))
    ]
    write_jsonl(tmp_path / "turns.jsonl", rows)
    outcome = scored(tmp_path / "turns.jsonl", tmp_path / "s.jsonl", oracle, tiny_model, csv_share=0.5)
    assert (outcome.scored, outcome.not_in_csv) == (3, 1)
    found = [row.records[0] for row in read_sepo_csv(tmp_path / "s.csv", tokenize_by(tiny_model))]
    assert [[tuple(turn) for turn in record.prompt] for record in found] == [turns, [("system", "Be brief."), *turns]]
    assert json.loads((tmp_path / "s.report.json").read_text())["not_in_csv"] == ["odd"]


def batch_tokens_of(folder):
    return json.loads((folder / "s.work" / "oracle-0-of-1" / "manifest.json").read_text())["sampling"]["batch_tokens"]


@pytest.mark.parametrize(
    ("present", "options", "expected"),
    [
        (False, [], 2048),
        (True, [], 16384),
        (True, ["--batch-tokens", "99"], 99),
    ],
)
def test_the_journal_has_the_batch_that_follows_from_the_device(
    pairs, oracle, tiny_model, tmp_path, monkeypatch, present, options, expected
):
    monkeypatch.setattr(scoring, "accelerator", lambda: torch.device("cuda", 0) if present else None)
    command = f"sepo score {pairs} --output {tmp_path / 's.jsonl'} --reference {tiny_model} --oracle {oracle}"
    result = CliRunner().invoke(app, [*command.split(), *options])
    assert result.exit_code == 0, result.output
    assert batch_tokens_of(tmp_path) == expected


@pytest.mark.parametrize(("gpus", "expected"), [("0", 2048), ("0.5", 16384)])
def test_workers_have_the_batch_of_their_own_devices(pairs, oracle, tiny_model, tmp_path, monkeypatch, gpus, expected):
    """Not that of the machine which divides the work."""
    monkeypatch.setattr(RayScorer, "logps", lambda self, items, done=(): self.scorer.logps(items, done=done))
    command = f"sepo score {pairs} --output {tmp_path / 's.jsonl'} --reference {tiny_model} --oracle {oracle}"
    result = CliRunner().invoke(app, [*command.split(), "--workers", "2", "--worker-gpus", gpus])
    assert result.exit_code == 0, result.output
    assert batch_tokens_of(tmp_path) == expected


def test_the_command_divides_a_model_by_its_device_map_and_scores_the_same(pairs, oracle, tiny_model, tmp_path):
    for name, options in (("plain", []), ("mapped", ["--device-map", "auto"])):
        command = f"sepo score {pairs} --output {tmp_path / name}.jsonl --reference {tiny_model} --oracle {oracle}"
        result = CliRunner().invoke(app, [*command.split(), *options])
        assert result.exit_code == 0, result.output
    assert contents(tmp_path / "plain.jsonl") == contents(tmp_path / "mapped.jsonl")


def contrast_alone(right, wrong, dialogue, text, b):
    """softmax((1 + b) z+ - b z-) at each byte of the text and the end token, by two plain forwards in float64."""
    tokenizer = AutoTokenizer.from_pretrained(wrong)
    before, ids = tokenizer(dialogue)["input_ids"], tokenizer(f"{text}</s>")["input_ids"]
    logits = []
    for folder in (right, wrong):
        model = AutoModelForCausalLM.from_pretrained(folder).double()
        with torch.no_grad():
            logits.append(model(torch.tensor([before + ids])).logits[0])
    share = ((1 + b) * logits[0] - b * logits[1]).softmax(-1)
    return [share[len(before) + i - 1][token].item() for i, token in enumerate(ids)]


@pytest.fixture
def contrasted(pairs, oracle, tiny_model, tmp_path):
    """The command with --contrast, from a file of pairs."""

    def call(output, *options):
        models = ["--reference", str(tiny_model), "--oracle", str(oracle), "--batch-tokens", "64"]
        return CliRunner().invoke(app, ["sepo", "score", str(pairs), *models, "--output", str(output), *options])

    return call


def test_a_contrast_reads_both_models_once_and_its_second_file_has_a_probability_per_token(
    contrasted, pairs, oracle, tiny_model, tmp_path
):
    output = tmp_path / "scores.jsonl"
    done = contrasted(output, "--contrast", "0.5")
    assert done.exit_code == 0, done.output
    assert check_file(output.with_suffix(".contrast.jsonl"), "scored_pair").total_problems == 0
    table = parquet.read_table(output.with_suffix(".parquet")).to_pylist()
    records = read_records(output.with_suffix(".contrast.jsonl"), "scored_pair")
    for record, row, given in zip(records, table, PAIRS, strict=True):
        assert record.score_kind == "contrast"
        system = f"<system>{given['system']}</s>" if "system" in given else ""
        dialogue = f"{system}<user>{given['prompt']}</s><assistant>"
        for side in ("chosen", "rejected"):
            expected = contrast_alone(oracle, tiny_model, dialogue, given[side], 0.5)
            assert getattr(record, f"{side}_scores") == pytest.approx(expected, abs=1e-5)
            assert row[f"{side}_contrast"] == pytest.approx(expected, abs=1e-5)
    assert json.loads(output.with_suffix(".report.json").read_text())["contrast"].startswith("contrast 0.5: hf:")
    alone = tmp_path / "alone.jsonl"
    scored(pairs, alone, oracle, tiny_model)
    differences = read_records(output, "scored_pair")
    for ours, theirs in zip(differences, read_records(alone, "scored_pair"), strict=True):
        assert ours.score_kind == "log_ratio"
        assert ours.chosen_offsets == theirs.chosen_offsets
        for name in ("chosen_scores", "rejected_scores"):
            assert getattr(ours, name) == pytest.approx(getattr(theirs, name), abs=2e-6)


def test_a_contrast_resumes_and_does_not_read_what_its_journal_has(contrasted, tmp_path, monkeypatch):
    from finepref.synth.scorers import contrast

    output = tmp_path / "scores.jsonl"
    read, broken = contrast._read, []

    def once(*arguments):
        if broken:
            raise KeyboardInterrupt
        broken.append(1)
        return read(*arguments)

    monkeypatch.setattr(contrast, "_read", once)
    assert contrasted(output, "--contrast", "1").exit_code != 0
    assert not output.exists()
    batches = []
    monkeypatch.setattr(contrast, "_read", lambda batch, *rest: batches.append(len(batch.items)) or read(batch, *rest))
    assert contrasted(output, "--contrast", "1").exit_code == 0
    assert 0 < sum(batches) < len(PAIRS)
    whole = tmp_path / "whole.jsonl"
    assert contrasted(whole, "--contrast", "1").exit_code == 0
    for suffix in (".jsonl", ".contrast.jsonl", ".parquet"):
        assert output.with_suffix(suffix).read_bytes() == whole.with_suffix(suffix).read_bytes()


def test_a_contrast_needs_an_engine_that_gives_logits(contrasted, tmp_path):
    done = contrasted(tmp_path / "scores.jsonl", "--contrast", "1", "--engine", "vllm")
    assert done.exit_code == 1
    assert "--contrast needs the logits of both models, which only --engine hf gives" in done.output
