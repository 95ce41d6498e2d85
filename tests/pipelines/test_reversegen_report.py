"""ReverseGen's loop and its report, with steps that are made up: what is trained, compared and said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from finepref.cli import app
from finepref.formats.jsonl import write_jsonl
from finepref.pipelines import settings
from finepref.pipelines.reversegen import LearntNothing, reversegen
from finepref.pipelines.steps import Pipeline
from finepref.synth.calibration import calibration
from typer.testing import CliRunner

ROOT = Path(__file__).parents[2]
CLASSES = ("failing", "solved", "duplicate", "invalid", "unjudged", "unproposed")


def figures(failing: int, solved: int, invalid: int = 0) -> dict[str, object]:
    """What `eval` writes."""
    counts = dict.fromkeys(CLASSES, 0) | {"failing": failing, "solved": solved, "invalid": invalid}
    judged = failing + solved
    return {
        "rows": sum(counts.values()),
        "classes": counts,
        "reasons": {"invalid": {"truncated": invalid} if invalid else {}, "unjudged": {}, "unproposed": {}},
        "accuracy": solved / judged if judged else None,
        "distinct": 1.0,
        "self_bleu": 0.25,
        "entropy": None,
        "average_precision": None,
    }


class World:
    """What the made-up steps write; a step's name may end a key, and the longest key counts."""

    def __init__(self) -> None:
        self.pairs: dict[str, int] = {"": 5}
        self.records: dict[str, int] = {"": 40}
        self.judged: dict[str, list[dict[str, object]]] = {}
        self.evals: dict[str, dict[str, object]] = {
            "": figures(30, 50, 20),
            "final/eval": figures(72, 24, 4),
            "before/eval": figures(40, 40),
            "after/eval": figures(10, 70),
            "control/after/eval": figures(20, 60),
        }

    @staticmethod
    def of(table: dict[str, object], step: str):
        return table[max((key for key in table if step.endswith(key)), key=len)]

    def write(self, step: str, path: Path) -> None:
        counts = {"both": 2, "failing only": 1, "solved only": 0, "neither": 0}
        if path.name == "pairs.jsonl":
            count = self.of(self.pairs, step)
            write_jsonl(path, [{"id": str(i)} for i in range(count)])
            report = {"pairs": count, "few_shot_prompts": counts, "contradictory": 0, "above_invalid": 0}
            path.with_suffix(".report.json").write_text(json.dumps(report))
        elif path.name == "warmup.jsonl":
            write_jsonl(path, [{"id": str(i)} for i in range(self.records.get("warmup/records", 1))])
        elif path.name == "improve.jsonl":
            count = self.of(self.records, step)
            write_jsonl(path, [{"id": str(i)} for i in range(count)])
            report = {"records": count, "different": min(count, 30), "left_out": {"without a good answer": 9}}
            path.with_suffix(".report.json").write_text(json.dumps(report))
        elif path.name == "judged.jsonl" and step in self.judged:
            write_jsonl(path, self.judged[step])
        elif path.name == "judged.jsonl":
            classes = self.of(self.evals, step.replace("/judge", "/eval"))["classes"]
            labels = [False] * classes["failing"] + [True] * classes["solved"]
            rows = [{"id": str(i), "prompt": f"Q{i}?", "response": "A", "label": x} for i, x in enumerate(labels)]
            write_jsonl(path, rows)
        elif path.name == "eval.json":
            path.write_text(json.dumps(self.of(self.evals, step)))
        elif not path.suffix:
            path.mkdir(exist_ok=True)
        else:
            write_jsonl(path, [{"id": "x"}])


@pytest.fixture
def world():
    return World()


@pytest.fixture
def keys(tmp_path):
    """A YAML of two rounds with a recipe of the host."""
    files = {"seeds": str(tmp_path / "first.jsonl"), "held_out": str(tmp_path / "second.jsonl")}
    for file in files.values():
        write_jsonl(Path(file), [{"prompt": "Q?"}])
    recipes = {
        "warmup_training": "warmup",
        "proposer_training": "dpo",
        "target_training": "target",
        "export": "export",
    }
    sections = {name: {"recipe": f"examples/reversegen_{recipe}.yaml"} for name, recipe in recipes.items()}
    sections |= {"propose": {"prompts": 2, "n": 4}, "dedup": {"method": "exact"}, "answer": {}, "warmup": {"n": 8}}
    file = tmp_path / "loop.yaml"
    own = {"proposer": "a/proposer", "target": "a/target", "rounds": 2, "judge": {"judge": "number"}}
    file.write_text(yaml.safe_dump(files | sections | own | {"validate": {"by": "arithmetic"}}))
    return file


@pytest.fixture
def play(world, keys, tmp_path, monkeypatch):
    """The loop with overrides; its steps as step -> (words, inputs), and its report."""

    def loop(*overrides, command=False, file=keys):
        steps = {}

        def run(self, step, command, *, inputs=(), outputs, environment=None, private=False):
            inputs = [str(path) for path in inputs]
            missing = [path for path in inputs if path.startswith(str(self.folder)) and not Path(path).exists()]
            assert not missing, "a step reads what no step before it makes"
            assert step not in steps
            for path in outputs:
                path.parent.mkdir(parents=True, exist_ok=True)
                world.write(step, path)
            steps[step] = ([str(word) for word in command], inputs)
            self.steps[step] = {"command": steps[step][0], "seconds": 1.0}

        monkeypatch.setattr(Pipeline, "run", run)
        monkeypatch.chdir(ROOT)
        folder = tmp_path / "run"
        if command:
            return CliRunner().invoke(app, ["reversegen", "run", str(keys), "--output", str(folder), *overrides])
        with Pipeline(folder) as pipeline:
            try:
                settings.call(reversegen, settings.load(file, overrides), file=file, pipeline=pipeline)
            finally:
                report = folder / "report.md"
                steps["report"] = report.read_text() if report.exists() else None
        return steps

    return loop


def after(words, option):
    return words[words.index(option) + 1]


def results(tmp_path):
    return json.loads((tmp_path / "run/results.json").read_text())


def line(report: str, start: str) -> list[str]:
    """The cells of the first line of a table that begins so."""
    found = next(each for each in report.splitlines() if each.startswith(f"| {start} |"))
    return [cell.strip() for cell in found.strip("|").split("|")]


def test_a_whole_loop_compares_valid_instructions_and_the_same_held_out_ones(play, tmp_path):
    """30 of 80 valid ones failed at first and 72 of 96 at last; 20 of 100 and 4 of 100 proposals are invalid."""
    report = play()["report"]
    proposers = "From the warm-up proposer to the last trained one, the "
    assert f"{proposers}failure rate among valid instructions rose: 37.5% to 75.0%, +37.5 points (95 %" in report
    assert f"{proposers}share of invalid proposals fell: 20.0% to 4.0%, -16.0 points (95 %" in report
    assert "From before to after, the target's accuracy on held-out instructions rose: 50.0% to 87.5%" in report
    assert report.splitlines()[2].startswith("- ")
    assert "| not trained" not in report
    assert "ontrol" not in report
    found = results(tmp_path)
    assert found["trained"] == {"proposer": [True, True], "target": True, "control": None}
    assert found["changes"]["failing of valid"]["shown"] is True
    assert (tmp_path / "run/rounds.png").stat().st_size > 1000


def test_a_round_without_pairs_is_not_trained_and_nothing_is_compared_with_it(play, world, tmp_path):
    """The last line is the same proposer as the line above: the one that is compared is `round_2`."""
    world.pairs["round_2/pair"] = 0
    world.evals["round_2/eval"] = figures(60, 40)
    steps = play()
    assert "round_2/train" not in steps
    writer = after(steps["round_2/propose"][0], "--model")
    assert writer == str(tmp_path / "run/round_1/export/model")
    assert after(steps["final/propose"][0], "--model") == writer
    assert line(steps["report"], "final")[:3] == ["final", "not trained (0 pairs in round_2)", "100"]
    assert line(steps["report"], "round_2")[1] == "5 pairs of round_1"
    assert "37.5% to 60.0%" in steps["report"]
    assert "to 75.0%" not in steps["report"]


def test_a_proposer_that_was_never_trained_is_compared_with_nothing(play, world, tmp_path):
    world.pairs = {"": 0}
    report = play()["report"]
    first = report.splitlines()[2]
    assert first == (
        "The proposer was not trained after its warm-up: no round had enough pairs. Nothing is compared with it."
    )
    assert "failure rate among" not in report
    assert "Self-BLEU went" not in report
    assert "From before to after, the target's accuracy on held-out instructions rose" in report
    assert {*results(tmp_path)["changes"]} == {"accuracy after and before"}


@pytest.mark.parametrize("pairs", [0, 5])
def test_without_a_good_answer_the_report_has_all_rounds_and_says_that_the_target_was_not_trained(
    play, world, tmp_path, pairs
):
    world.pairs, world.records = {"": pairs}, {"": 0}
    with pytest.raises(LearntNothing) as nothing:
        play()
    assert nothing.value.proposer == bool(pairs)
    report = (tmp_path / "run/report.md").read_text()
    first = report.splitlines()[2]
    if pairs:
        assert first.startswith("The target was not trained: there were not enough good answers for it to learn.")
    else:
        assert first.startswith("This loop learnt nothing: no round had enough pairs to train the proposer on, and ")
    assert line(report, "round_1")[1:4] == ["warm-up", "100", "30"]
    assert line(report, "round_2")[1] == ("5 pairs of round_1" if pairs else "not trained (0 pairs in round_1)")
    assert line(report, "final")[2:4] == ["100", "72"]
    assert "The target was not trained: 0 records; instructions left out: 9 without a good answer." in report
    assert line(report, "before")[2] == "80"
    assert not [each for each in report.splitlines() if each.startswith("| after ")]
    assert "From before to after" not in report
    assert results(tmp_path)["after"] is None


@pytest.mark.parametrize(("pairs", "records", "code"), [(0, 0, 3), (5, 0, 4), (0, 40, 0), (5, 40, 0)])
def test_a_loop_that_learnt_nothing_has_exit_codes_of_its_own(play, world, tmp_path, pairs, records, code):
    world.pairs, world.records = {"": pairs}, {"": records}
    result = play(command=True)
    assert result.exit_code == code
    assert f"report: {tmp_path / 'run/report.md'}" in result.output
    assert ("This loop learnt nothing" in result.output) == (code == 3)
    assert ("The target was not trained" in result.output) == (code == 4)


def test_a_control_learns_as_many_seeds_and_is_a_row_of_the_report(play, keys, tmp_path):
    """The seeds go the way of the proposals, and both labels get the same response; 40 records, 30 different ones."""
    steps = play("improve.control=true", "improve.template='{answer}!'")
    assert steps["control/seeds/dedup"][0][2] == yaml.safe_load(keys.read_text())["seeds"]
    assert {"control/seeds/validate", "control/seeds/answer", "control/seeds/judge"} <= steps.keys()
    assert "control/seeds/eval" not in steps, "seeds need no ids"
    words, _ = steps["control/records"]
    judged = str(tmp_path / "run/control/seeds/judge/judged.jsonl")
    assert words[:4] == ["finepref", "reversegen", "improve", judged]
    assert (after(words, "--count"), after(words, "--solved-template")) == ("40", "{answer}!")
    assert "--control" not in [*words, *steps["improve/records"][0]]
    assert not {"--count", "--solved-template"} & {*steps["improve/records"][0]}
    own, other = (steps[f"{name}/train"][0] for name in ("improve", "control"))
    data = tmp_path / "run/control/records"
    assert [word for word in other if word not in own] == [
        f"output_dir={tmp_path / 'run/control/train/model'}",
        f"dataset_dir={data}",
    ]
    assert after(steps["control/after/answer"][0], "--model") == str(tmp_path / "run/control/export/model")
    report = steps["report"]
    assert line(report, "control")[1:4] == ["40, 30 different", "80", "75.0% (65% to 83%)"]
    assert "From the control to the target, a change of the accuracy on held-out instructions is" not in report
    assert "From the control to the target, the accuracy on held-out instructions rose: 75.0% to 87.5%" in report


def test_a_teacher_answers_all_seeds_of_the_control_and_only_failing_proposals(play):
    steps = play("improve.control=true", "teacher={model: m}")
    assert "--failing" in steps["improve/answer_3"][0]
    assert "--failing" not in steps["control/answer_1"][0]
    assert after(steps["control/records"][0], "--answers") == steps["control/judge_1"][0][-1]


def test_the_controls_questions_of_a_gym_are_neither_seeds_nor_held_out(play):
    gym = "gym={name: basic_arithmetic, seeds: 9, held_out: 7}"
    steps = play("improve.control=true", "seeds=null", "held_out=null", gym)
    assert [after(steps["control/data"][0], f"--{name}") for name in ("n", "skip")] == ["40", "16"]
    assert steps["control/seeds/dedup"][0][2] == after(steps["control/data"][0], "--output")


def test_a_control_that_has_no_records_is_not_trained_and_compared_with_nothing(play, world, tmp_path):
    world.records["control/records"] = 0
    report = play("improve.control=true")["report"]
    assert "The control was not trained: 0 records" in report
    assert "From the control" not in report
    assert results(tmp_path)["trained"]["control"] is False
    world.records = {"": 0}
    with pytest.raises(LearntNothing):
        play("improve.control=true")


def test_repeats_are_the_whole_loop_with_other_seeds_on_the_same_instructions(play, keys, tmp_path):
    """The first one is a run without repeats, so that its steps are done if repeats are asked for later."""
    once, again = play("seed=3", "answer.seed=5"), play("seed=3", "answer.seed=5", "repeats=3")
    own = {step: done for step, done in again.items() if not step.startswith("repeat_") and step != "report"}
    assert own == {step: done for step, done in once.items() if step != "report"}

    def unseeded(words):
        return [word.replace("repeat_2/", "") for word in words if not word.isdigit() and "seed" not in word]

    repeated = {step for step in again if step.startswith("repeat_2/")}
    assert {step.removeprefix("repeat_2/") for step in repeated} == own.keys() - {
        step for step in own if step.startswith("before/")
    }
    for step in repeated:
        assert unseeded(again[step][0]) == unseeded(again[step.removeprefix("repeat_2/")][0])
    seeds = [after(again[f"{place}round_2/propose"][0], "--seed") for place in ("", "repeat_2/", "repeat_3/")]
    assert seeds == ["5", "1005", "2005"]
    assert [after(again[f"{place}after/answer"][0], "--seed") for place in ("", "repeat_3/")] == ["5", "2005"]
    trained = [again[f"{place}improve/train"][0] for place in ("", "repeat_2/", "repeat_3/")]
    assert [[word for word in words if word.startswith("seed=")] for words in trained] == [
        [],
        ["seed=1042"],
        ["seed=2042"],
    ]
    assert "repeat_2/before/answer" not in again
    held_out = yaml.safe_load(keys.read_text())["held_out"]
    assert {again[f"{place}after/answer"][0][3] for place in ("", "repeat_2/", "repeat_3/")} == {held_out}


def test_repeats_are_told_with_mean_and_spread_and_an_interval_over_them(play, world, tmp_path):
    """Accuracies 70, 60 and 50 of 80: mean 75 %, spread 12.5 points; +25 points, 4.303 * 12.5 / sqrt(3) = 31.1."""
    world.evals |= {"repeat_2/after/eval": figures(20, 60), "repeat_3/after/eval": figures(30, 50)}
    world.pairs["repeat_3/round_1/pair"] = world.pairs["repeat_3/round_2/pair"] = 0
    report = play("repeats=3")["report"]
    assert line(report, "accuracy after")[1:] == ["87.5%", "75.0%", "62.5%", "75.0%", "12.5%"]
    assert line(report, "failing of valid, last trained")[1:] == ["75.0%", "75.0%", "-", "75.0%", "0.0%"]
    told = "a change of the target's accuracy on held-out instructions is not shown: 50.0% to 75.0%, +25.0 points"
    assert f"{told} (95 % interval -6.1 to +56.1)" in report
    assert report.splitlines()[0] == "# ReverseGen, 2 rounds, 3 repeats"
    assert report.splitlines()[2].startswith("The proposer was not trained after its warm-up in 1 of 3 repeats: ")
    assert [each["trained"]["proposer"] for each in results(tmp_path)["repeats"]] == [[True, True], [False, False]]
    assert line(report, "after (3)")[3].startswith("62.5% (")


def sure(entropies, right):
    """Judged multiple-choice questions with the entropies of their answers; A is right, and the answer where told."""
    chances = ({"A": 0.75, "B": 0.25}, {"A": 0.25, "B": 0.75})
    return [
        {
            **{"id": str(i), "prompt": f"Q{i}?", "options": ["yes", "no"], "answer": "A", "label": nats < 0.8},
            **{"letters": chances[not is_right], "verdict": {"judge": "entropy", "score": nats}},
        }
        for i, (nats, is_right) in enumerate(zip(entropies, right, strict=True))
    ]


def test_honesty_has_accuracy_calibration_and_entropy_of_the_same_questions(play, world, tmp_path):
    """Entropies fall by .5, .6, .4 and .5: mean .5, deviation .0816, half width 3.182 x .0816 / 2 = .130."""
    world.judged = {
        "before/judge": sure([1.0, 1.2, 1.4, 0.6], [True, False, False, False]),
        "after/judge": sure([0.5, 0.6, 1.0, 0.1], [True, True, False, False]),
    }
    for name, nats, accuracy, error in (("before", 1.05, 0.25, 0.5), ("after", 0.55, 0.5, 0.25)):
        more = {"entropy": nats, "average_precision": accuracy, "ece": error, "accuracy": accuracy, "refusals": 2}
        own = calibration([0.75] * 4, [float(i < 4 * accuracy) for i in range(4)])  # as `eval` writes it
        world.evals[f"{name}/eval"] = figures(3, 1) | more | {"calibration": own}
    report = play()["report"]
    assert line(report, "target")[3:] == [
        *("accuracy", "failing", "refusals", "unjudged", "entropy (nats)", "average precision", "ECE")
    ]
    assert line(report, "before")[2:] == [
        "4",
        "25.0% (5% to 70%)",
        "75.0% (30% to 95%)",
        "2",
        "0",
        "1.0500",
        "0.2500",
        "0.5000",
    ]
    assert line(report, "after")[2:] == [
        "4",
        "50.0% (15% to 85%)",
        "75.0% (30% to 95%)",
        "2",
        "0",
        "0.5500",
        "0.5000",
        "0.2500",
    ]
    assert (
        "From before to after, the entropy of the target's answers to these fell: 1.050 to 0.550 nats "
        "(95 % interval -0.630 to -0.370)." in report
    )
    assert "a change of the target's accuracy on held-out instructions is not shown: 25.0% to 50.0%" in report
    assert results(tmp_path)["changes"]["entropy after and before"]["new"] == pytest.approx(0.55)


def test_invalid_proposals_reach_the_pairs(play, tmp_path):
    """Where there is no validator, those that `propose` left out."""
    words, inputs = play("pair.above_invalid=true")["round_1/pair"]
    checked = str(tmp_path / "run/round_1/validate/validate.jsonl")
    assert after(words, "--checked") == checked
    assert "--above-invalid" in words
    assert checked in inputs
    assert "--checked" not in play("validate=null")["round_1/pair"][0]


def test_files_of_ready_prompts_and_warm_up_rows_are_used_as_they_are(play):
    """Seeds are needed for a control only."""
    ready = ("warmup={ready: w.jsonl}", "propose={ready: p.jsonl, n: 4}", "few_shot={shots: 3, group: subject}")
    with pytest.raises(ValueError, match="give seeds and held_out, or gym"):
        play(*ready, "seeds=null", "improve.control=true")
    steps = play(*ready, "seeds=null")
    assert steps["warmup/records"][0][3:5] == ["w.jsonl", "--ready"]
    words, inputs = steps["round_1/propose"]
    assert words[3:7] == ["p.jsonl", "--ready", "--group", "subject"]
    assert "--shots" not in words
    assert "p.jsonl" in inputs


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["held_out=null"], "give seeds and held_out, or gym"),
        (["gym={name: basic_arithmetic, seeds: 9, held_out: 7}"], "give seeds and held_out, or gym"),
        (["seeds=null", "held_out=null", "gym={name: x, size: 9}"], "gym has name, seeds, held_out, seed, option and"),
        (["seeds=null", "gym={name: basic_arithmetic, seeds: 9, held_out: 7}"], "give seeds and held_out, or gym"),
        (["repeats=0"], "repeats is below 1"),
        (["launcher=python -m"], "launcher is OpenRLHF's"),
        (["export.recipe=null", "export={}"], "export.recipe is missing"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_anything_runs(play, tmp_path, overrides, told):
    with pytest.raises(ValueError, match=told):
        play(*overrides)
    assert not (tmp_path / "run/warmup").exists()


@pytest.fixture
def flags(keys):
    """The same loop with OpenRLHF's flags."""
    given = yaml.safe_load(keys.read_text())
    training = {"train": {"batch_size": 4, "micro_batch_size": 2}, "ds": {"lora": {"rank": 8}}}
    given |= dict.fromkeys(("warmup_training", "proposer_training", "target_training"), training)
    keys.write_text(yaml.safe_dump(given | {"host": "openrlhf", "export": {"ds": {"param_dtype": "fp16"}}}))


def flags_of(words):
    """Flag -> the words that follow it, of a training."""
    found = {}
    for word in words:
        if word.startswith("--"):
            found[word[2:]] = []
        elif found:
            found[[*found][-1]].append(word)
    return found


@pytest.mark.usefixtures("flags")
def test_on_openrlhf_the_hosts_sft_and_plain_dpo_train_and_adapters_are_merged(play, world, tmp_path):
    world.records["warmup/records"] = 8
    steps, run = play(), tmp_path / "run"
    words, _ = steps["warmup/train"]
    assert words[:3] == ["deepspeed", "--module", "openrlhf.cli.train_sft"]
    given = flags_of(words)
    assert given["data.dataset"] == [str(run / "warmup/records/warmup.jsonl")]
    assert (given["data.input_key"], given["data.output_key"]) == (["prompt"], ["response"])
    assert given["data.apply_chat_template"] == []
    assert given["model.model_name_or_path"] == ["a/proposer"]
    words, inputs = steps["round_1/train"]
    assert words[:3] == ["deepspeed", "--module", "openrlhf.cli.train_tdpo"]
    given = flags_of(words)
    assert [given[name] for name in ("tdpo.variant", "tdpo.masks", "data.dataset")] == [["dpo"], ["none"], ["pairs"]]
    assert given["model.model_name_or_path"] == [str(run / "warmup/export/model")]
    table = json.loads((run / "round_1/pair/dataset_info.json").read_text())
    assert table == {"pairs": {"file_name": "pairs.jsonl", "formatting": "pair"}}
    assert given["data.dataset_dir"] == [str(run / "round_1/pair")]
    assert str(run / "round_1/pair/pairs.jsonl") in inputs
    assert steps["round_1/export"][0][:3] == ["python", "-m", "openrlhf.cli.lora_combiner"]
    assert after(steps["round_2/propose"][0], "--model") == str(run / "round_1/export/model")
    assert flags_of(steps["improve/train"][0])["model.model_name_or_path"] == ["a/target"]


@pytest.mark.usefixtures("flags")
def test_on_openrlhf_pairs_that_do_not_fill_a_batch_train_nothing_and_that_is_told(play, world):
    """The host drops a batch that is not full."""
    world.records["warmup/records"] = 8
    world.pairs["round_1/pair"] = 3
    steps = play()
    assert "round_1/train" not in steps
    assert line(steps["report"], "round_2")[1] == "not trained (3 pairs in round_1)"
    world.records["warmup/records"] = 3
    with pytest.raises(ValueError, match="warmup: 3 records are less than a batch of warmup_training"):
        play()


@pytest.mark.usefixtures("flags")
def test_on_openrlhf_a_repeat_has_another_seed_and_the_launcher_is_the_users(play, world):
    world.records["warmup/records"] = 8
    steps = play("repeats=2", "launcher=python -m", "target_training.train.seed=7")
    assert steps["warmup/train"][0][:3] == ["python", "-m", "openrlhf.cli.train_sft"]
    assert "train.seed" not in flags_of(steps["warmup/train"][0])
    assert flags_of(steps["repeat_2/warmup/train"][0])["train.seed"] == ["1042"]
    assert flags_of(steps["repeat_2/improve/train"][0])["train.seed"] == ["1007"]


def test_openrlhfs_shipped_file_has_the_settings_of_the_other_hosts(play, world):
    """But for the optimizer and the warm-up, of which the file says what was released."""
    world.pairs, world.records = {"": 60}, {"": 60, "warmup/records": 4000}
    steps = play(file=ROOT / "examples/pipelines/reversegen_math_openrlhf.yaml")
    for step, recipe in (("warmup", "warmup"), ("round_3", "dpo"), ("improve", "target")):
        flags, released = (
            flags_of(steps[f"{step}/train"][0]),
            settings.load(ROOT / f"examples/reversegen_{recipe}.yaml"),
        )
        batch = released["per_device_train_batch_size"] * released["gradient_accumulation_steps"]
        same = {"adam.lr": released["learning_rate"], "train.batch_size": batch, "max_norm": released["max_grad_norm"]}
        same |= {"data.max_len": released["cutoff_len"], "train.max_epochs": released["num_train_epochs"]}
        same |= {"ds.lora.rank": released["lora_rank"], "ds.lora.alpha": released["lora_alpha"]}
        assert {name: float(flags[name][0]) for name in same} == same
        assert flags["lr_scheduler"] == [released["lr_scheduler_type"]]
    assert flags_of(steps["round_1/train"][0])["model.beta"] == ["0.1"]
    own, other = (
        yaml.safe_load((ROOT / f"examples/pipelines/reversegen_math{end}.yaml").read_text())
        for end in ("_openrlhf", "")
    )
    shared = own.keys() & other.keys() - {"export", *(name for name in own if name.endswith("_training"))}
    assert {name: own[name] for name in shared} == {name: other[name] for name in shared}


@pytest.mark.usefixtures("flags")
@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("proposer_training.recipe=x.yaml", "proposer_training.recipe is LLaMA-Factory's"),
        ("target_training.ckpt.path=x", "target_training.ckpt.path: the run sets this itself"),
        ("warmup_training.data.input_key=x", "warmup_training.data.input_key: the run sets this itself"),
    ],
)
def test_what_cannot_be_on_openrlhf_is_refused_before_anything_runs(play, tmp_path, override, told):
    with pytest.raises(ValueError, match=told):
        play(override)
    assert not (tmp_path / "run/warmup").exists()
