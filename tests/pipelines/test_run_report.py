"""`finepref report` on folders that are written by hand: groups, intervals, verdicts, and what is refused."""

from __future__ import annotations

import csv
import json
import re
from statistics import fmean, stdev

import pytest
from finepref.cli import app
from finepref.formats.problems import BadData
from finepref.pipelines.run_comparison import compare
from finepref.pipelines.run_folders import read_runs
from finepref.synth.intervals import student
from typer.testing import CliRunner

RECEIPTS = ("finepref_receipt.json", "finepref_evaluation_receipt.json", "finepref_eval_receipt.json")


def receipt(seed=1, **settings):
    own = {"host": "llamafactory", "model": {"path": "base", "weights_sha256": "ab" * 32}, "max_steps": 8}
    own |= {"optimizer": {"learning_rate": 1e-4}, "started": f"seed {seed}"}
    data = [{"name": "d", "files": {"d.jsonl": "cd" * 32}}]
    given = {"stage": "tdpo", "settings": {"tdpo_alpha": 0.5, "pref_beta": 0.1} | settings}
    return given | {"seed": seed, "datasets": data, "run": own, "versions": {"torch": "2"}}


@pytest.fixture
def run_folder(tmp_path):
    """Write a run's folder: receipt, evaluation and log."""

    def write(name, figures=None, *, receipt=None, losses=(), files=None):
        folder = tmp_path / name
        folder.mkdir()
        if receipt:
            (folder / "finepref_receipt.json").write_text(json.dumps(receipt))
        if figures:
            (folder / "all_results.json").write_text(json.dumps({"epoch": 1.0, "eval_runtime": 3.0, **figures}))
        if losses:
            lines = [
                {"current_steps": i, "total_steps": len(losses), "loss": loss, "lr": 1.0}
                for i, loss in enumerate(losses, start=1)
            ]
            (folder / "trainer_log.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
        for file, content in (files or {}).items():
            (folder / file).parent.mkdir(exist_ok=True)
            (folder / file).write_text(content if isinstance(content, str) else json.dumps(content))
        return folder

    return write


def comparison(*folders, **options):
    return compare(read_runs([str(each) for each in folders], RECEIPTS, **options))


def run(*words, code=0):
    result = CliRunner().invoke(app, ["report", *map(str, words)])
    assert result.exit_code == code, result.output
    return result.output


def test_runs_that_differ_by_their_seed_alone_are_a_group_with_mean_and_spread(run_folder):
    found = comparison(
        *(run_folder(f"a{seed}", {"eval_acc": acc}, receipt=receipt(seed)) for seed, acc in ((1, 0.5), (2, 0.7))),
        run_folder("b", {"eval_acc": 0.4}, receipt=receipt(1, tdpo_alpha=0.1)),
    )
    assert [(group.name, group.seeds) for group in found.groups] == [
        ("tdpo_alpha=0.5", [1, 2]),
        ("tdpo_alpha=0.1", [1]),
    ]
    first, second = found.table["eval_acc"]
    assert (first.mean, first.spread, second.spread) == (pytest.approx(0.6), pytest.approx(stdev([0.5, 0.7])), None)
    assert found.differing == {"tdpo_alpha": [0.5, 0.1]}


def test_a_difference_over_seeds_is_shown_only_if_students_interval_excludes_0(run_folder):
    """Paired by seed: differences .20 and .21 have mean .205, standard error .005, t(1) = 12.706: -+ .0635.

    With .05 and .30 the standard error is .125, and the interval is far too wide.
    """
    base = {seed: run_folder(f"a{seed}", {"eval_acc": 0.5, "eval_f1": 0.5}, receipt=receipt(seed)) for seed in (1, 2)}
    gains = {1: (0.20, 0.05), 2: (0.21, 0.30)}
    other = [
        run_folder(
            f"b{seed}", {"eval_acc": 0.5 + sure, "eval_f1": 0.5 + unsure}, receipt=receipt(seed, tdpo_alpha=0.1)
        )
        for seed, (sure, unsure) in gains.items()
    ]
    found = comparison(*base.values(), *other)
    sure, unsure = found.differences["eval_acc"][0], found.differences["eval_f1"][0]
    assert sure.seeds == pytest.approx((0.205 - 12.706 * 0.005, 0.205 + 12.706 * 0.005))
    assert (sure.verdict, sure.records) == ("better", None)
    assert (unsure.verdict, unsure.why) == ("not shown", "an interval holds 0")
    assert unsure.value > 0.17


def test_seeds_that_differ_are_not_paired_and_a_seed_run_twice_counts_once(run_folder):
    """Welch: variances .0002 and .0008 of two each, error sqrt(.0001 + .0004), 2 degrees of freedom at most."""
    runs = [run_folder(f"a{seed}", {"eval_acc": acc}, receipt=receipt(seed)) for seed, acc in ((1, 0.50), (2, 0.52))]
    runs += [
        run_folder(f"b{seed}", {"eval_acc": acc}, receipt=receipt(seed, tdpo_alpha=0.1))
        for seed, acc in ((3, 0.60), (4, 0.64))
    ]
    found = comparison(*runs)
    low, high = found.differences["eval_acc"][0].seeds
    freedom = int(0.0005**2 / (0.0001**2 + 0.0004**2))
    assert (high - low) / 2 == pytest.approx(student(freedom) * 0.0005**0.5)
    again = receipt(2)
    again["run"]["started"] = "later"
    twice = comparison(*runs, run_folder("a2_again", {"eval_acc": 0.52}, receipt=again))
    assert len(twice.table["eval_acc"][0].values) == 2
    assert "tdpo_alpha=0.5: seed 2 was run more than once; its runs count as one" in twice.notes


def test_one_run_each_without_values_per_record_is_never_a_rise(run_folder):
    found = comparison(
        run_folder("a", {"eval_acc": 0.1}, receipt=receipt()),
        run_folder("b", {"eval_acc": 0.9}, receipt=receipt(tdpo_alpha=0.1)),
    )
    each = found.differences["eval_acc"][0]
    assert (each.verdict, each.why) == ("not shown", "no values per record, and fewer than two seeds each")


def test_seeds_that_agree_exactly_are_no_measure_of_noise(run_folder):
    """A share of four records has five values; both seeds gain one record."""
    found = comparison(
        *(run_folder(f"a{seed}", {"eval_acc": 0.25}, receipt=receipt(seed)) for seed in (1, 2)),
        *(run_folder(f"b{seed}", {"eval_acc": 0.5}, receipt=receipt(seed, tdpo_alpha=0.1)) for seed in (1, 2)),
    )
    each = found.differences["eval_acc"][0]
    assert (each.verdict, each.why, each.seeds) == ("not shown", "no seed differs from another", None)
    same = comparison(run_folder("c", {"eval_acc": 0.5}), run_folder("d", {"eval_acc": 0.5}))
    assert same.differences["eval_acc"][0].why == "equal in all runs"


def test_a_log_that_counts_its_tokens_is_read_up_to_the_summary(run_folder):
    """With include_num_input_tokens_seen, as in the recipe of SeaPO, every entry has the time so far."""
    told = {"train_runtime": 2.0, "train_tokens_per_second": 50.0, "num_input_tokens_seen": 99}
    entries = [{"step": step, "loss": loss, "rewards/margins": 1.0, **told} for step, loss in ((1, 0.6), (2, 0.4))]
    entries += [{"step": 2, "eval_loss": 0.3, **told}, {"step": 2, "train_loss": 0.5, **told}]
    state = {"trainer_state.json": {"log_history": entries, "max_steps": 2}}
    (run,) = read_runs([str(run_folder("a", receipt=receipt(), files=state))], RECEIPTS)
    assert run.curves["loss"] == [(1, 0.6), (2, 0.4)]
    assert {name: each.value for name, each in run.figures.items()} == {
        "train loss": 0.4,
        "train rewards/margins": 1.0,
        "eval_loss": 0.3,
    }


def test_held_out_records_that_the_seed_draws_are_told(run_folder):
    runs = []
    for seed in (1, 2):
        own = receipt(seed)
        own["run"]["command"] = {"settings": {"val_size": 0.1}}
        runs.append(run_folder(f"a{seed}", {"eval_acc": 0.5}, receipt=own))
    assert any("val_size draws the held-out records by the seed" in note for note in comparison(*runs).notes)
    assert comparison(runs[0]).notes == []


def test_losses_of_other_options_are_not_compared_nor_rewards_of_another_beta(run_folder):
    figures = {"eval_loss": 0.6, "eval_rewards/margins": 0.1, "eval_rewards/accuracies": 0.5}
    alpha, beta = receipt(tdpo_alpha=0.1), receipt(pref_beta=0.5)
    found = comparison(
        run_folder("a", figures, receipt=receipt()),
        run_folder("alpha", figures, receipt=alpha),
        run_folder("beta", figures, receipt=beta),
        run_folder("stage", figures, receipt={**receipt(), "stage": "sepo"}),
    )
    verdicts = {name: [each.verdict for each in row] for name, row in found.differences.items()}
    assert verdicts == {
        "eval_loss": ["not comparable"] * 3,
        "eval_rewards/margins": ["not shown", "not comparable", "not comparable"],
        "eval_rewards/accuracies": ["not shown"] * 3,
    }
    assert found.differences["eval_loss"][0].why == "its unit depends on tdpo_alpha"


def lm_eval(values, *, name="acc"):
    """Files of lm-eval: 40 documents."""
    time = "2026-01-01T00-00-00"
    figures = {"alias": "t", f"{name},none": sum(values) / len(values), f"{name}_stderr,none": 0.1}
    rows = [{"doc_id": i, "filter": "none", name: value} for i, value in enumerate(values)]
    return {
        f"m/results_{time}.json": {"results": {"t": figures}, "higher_is_better": {"t": {name: name != "ppl"}}},
        f"m/samples_t_{time}.jsonl": "".join(json.dumps(row) + "\n" for row in rows),
    }


def test_values_per_document_of_lm_eval_are_compared_document_by_document(run_folder):
    """b is right on 12 documents more, and wrong on none that a has right: sure. c swaps 10 for 11: noise."""
    a = [1.0] * 20 + [0.0] * 20
    found = comparison(
        run_folder("a", files=lm_eval(a)),
        run_folder("b", files=lm_eval([1.0] * 32 + [0.0] * 8)),
        run_folder("c", files=lm_eval([1.0] * 10 + [0.0] * 10 + [1.0] * 11 + [0.0] * 9)),
    )
    b, c = found.differences["t acc"]
    assert (b.verdict, b.number, c.verdict) == ("better", 40, "not shown")
    assert (b.value, b.records) == (pytest.approx(0.3), pytest.approx((0.175, 0.45), abs=0.03))
    assert b.seeds is None
    assert "no receipt" in found.notes[0]


def test_a_figure_that_is_better_when_lower_is_called_so(run_folder):
    found = comparison(
        run_folder("a", files=lm_eval([2.0] * 10, name="ppl")), run_folder("b", files=lm_eval([3.0] * 10, name="ppl"))
    )
    assert found.differences["t ppl"][0].verdict == "worse"


def test_results_of_finepref_eval_have_the_receipt_of_the_model_that_was_trained(run_folder):
    folders = []
    for seed, values in ((1, [1, 0, 1, 1]), (2, [1, 1, 1, 1])):
        trained = run_folder(f"model{seed}", {"eval_acc": 0.5}, receipt=receipt(seed))
        results = {"tasks": {"own": {"metrics": {"acc": {"value": sum(values) / 4, "higher_is_better": True}}}}}
        evaluated = {"model": {"path": "base"}, "adapter": {"path": str(trained)}, "runs": [], "name": "x"}
        rows = "".join(json.dumps({"id": i, "acc": value}) + "\n" for i, value in enumerate(values))
        files = {"results.json": results, "samples/own.jsonl": rows, "finepref_eval_receipt.json": evaluated}
        folders += [trained, run_folder(f"eval{seed}", files=files)]
    found = comparison(*folders)
    assert [group.seeds for group in found.groups] == [[1, 2]]
    assert found.table["own acc"][0].values == [0.75, 1.0]
    assert found.notes == []


def test_figures_over_other_records_are_not_compared_and_of_common_ones_only_these(run_folder):
    def results(ids, values):
        figures = {"own": {"metrics": {"acc,none": {"value": sum(values) / len(values)}}}}
        rows = [{"id": f"{i}/none", "acc": value} for i, value in zip(ids, values, strict=True)]
        return {"results.json": {"tasks": figures}, "samples/own.jsonl": "\n".join(map(json.dumps, rows))}

    found = comparison(
        run_folder("a", files=results(range(10), [0.0] * 10)),
        run_folder("b", files=results(range(10, 20), [1.0] * 10)),
        run_folder("c", files=results(range(15), [0.0] * 10 + [1.0] * 5)),
    )
    b, c = found.differences["own acc"]
    assert (b.verdict, b.why) == ("not comparable", "they were evaluated on other records")
    assert (c.value, c.number, c.verdict) == (0.0, 10, "not shown")


def test_rewards_with_a_kl_in_them_are_not_compared_with_dpos_and_what_is_only_logged_changes_no_unit(run_folder):
    figures = {"eval_loss": 0.6, "eval_rewards/margins": 0.1}
    found = comparison(
        run_folder("dpo", figures, receipt=receipt(tdpo_variant="dpo", tdpo_log_kl=True)),
        run_folder("log", figures, receipt=receipt(tdpo_variant="dpo", tdpo_log_kl=False)),
        run_folder("one", figures, receipt=receipt(tdpo_variant="tdpo1")),
        run_folder("two", figures, receipt=receipt(tdpo_variant="tdpo2", tdpo_alpha=0.7)),
    )
    log, one, two = found.differences["eval_rewards/margins"]
    assert log.verdict == found.differences["eval_loss"][0].verdict == "not shown"
    assert one.why == two.why == "its unit depends on tdpo_variant"
    assert found.differences["eval_loss"][2].why == "its unit depends on tdpo_alpha, tdpo_variant"
    among = comparison(*(run.path for run in found.groups[2].runs + found.groups[3].runs))
    assert among.differences["eval_rewards/margins"][0].verdict == "not shown", "TDPO1 and TDPO2 have one reward"


def test_training_figures_have_their_own_count_and_what_has_no_common_unit_counts_as_no_difference(run_folder):
    runs = [
        run_folder(f"{alpha}{seed}", {"eval_acc": 0.5 + alpha + seed / 100}, receipt=own, losses=[2.0, alpha])
        for alpha in (0.1, 0.3)
        for seed, own in enumerate((receipt(1, tdpo_alpha=alpha), receipt(2, tdpo_alpha=alpha)))
    ]
    told = run(*runs)
    assert "- of 1 held-out figures: not shown in 1" in told
    assert "- of 1 training figures: not comparable in 1" in told
    assert "records" not in told


def test_negatives_of_one_record_are_drawn_together(run_folder):
    """Four types of each of 10 records, whose margins are equal: the interval is that of 10 values, not of 40."""
    widths = []
    for kinds in (("a",), ("a", "b", "c", "d")):
        folders = []
        for name, more in (("x", 0.0), ("y", 1.0)):
            rows = [{"id": f"{i}/{kind}", "type": kind, "margin": more * (i % 5)} for i in range(10) for kind in kinds]
            value = sum(row["margin"] for row in rows) / len(rows)
            files = {
                "results.json": {"tasks": {"t": {"metrics": {"margin": {"value": value}}}}},
                "samples/t.jsonl": "\n".join(map(json.dumps, rows)),
            }
            folders.append(run_folder(f"{name}{len(kinds)}", files=files))
        each = comparison(*folders).differences["t margin"][0]
        assert each.number == 10 * len(kinds)
        widths.append(each.records[1] - each.records[0])
    assert widths[0] == pytest.approx(widths[1])


def test_figures_of_each_error_type_are_compared_over_its_own_records(run_folder):
    """Ten records each with an error in logic and one in facts; only the margins of logic are higher."""
    folders = []
    for name, more in (("x", 0.0), ("y", 1.0)):
        value = {kind: [(kind == "logic") * more + i % 3 for i in range(10)] for kind in ("logic", "facts")}
        rows = [{"id": f"{i}/{kind}", "type": kind, "margin": m} for kind in value for i, m in enumerate(value[kind])]
        task = {
            "metrics": {"margin": {"value": fmean(row["margin"] for row in rows), "higher_is_better": True}},
            "by": {kind: {"n": 10, "margin": fmean(own), "low": 0.0} for kind, own in value.items()},
        }
        files = {"results.json": {"tasks": {"t": task}}, "samples/t.jsonl": "\n".join(map(json.dumps, rows))}
        folders.append(run_folder(name, files=files))
    found = comparison(*folders).differences
    assert {name: (row[0].verdict, row[0].number) for name, row in found.items()} == {
        "t margin": ("better", 20),
        "t margin, logic": ("better", 10),
        "t margin, facts": ("not shown", 10),
    }


def test_of_a_task_with_many_groups_the_report_says_where_their_figures_are(run_folder):
    by = {f"subject {i}": {"n": 1, "acc": 1.0} for i in range(57)}
    task = {"metrics": {"acc": {"value": 1.0}}, "by": by}
    found = comparison(run_folder("x", files={"results.json": {"tasks": {"mmlu": task}}}))
    assert [*found.table] == ["mmlu acc"]
    assert any("the figures of mmlu's 57 groups are in results.json only" in note for note in found.notes)


def test_each_model_of_a_margins_file_is_a_run(run_folder, tmp_path):
    records = {
        name: {f"r{i}": {"rejected": {"sum": good + i % 2, "mean": 0.1}} for i in range(20)}
        for name, good in (("a", 0.0), ("b", 1.0))
    }
    file = tmp_path / "margins.json"
    file.write_text(json.dumps({"job": "margins", "models": {}, "reference": None, "records": records}))
    found = comparison(file)
    assert [group.name for group in found.groups] == ["a", "b"]
    assert found.differences["margin sum, overall"][0].verdict == "better"
    assert found.differences["share of margins above 0"][0].value == pytest.approx(0.5)
    assert found.differences["margin mean, overall"][0].verdict == "not shown"


def test_reward_models_are_compared_pair_by_pair_by_what_apo_eval_wrote(run_folder, tmp_path):
    """Of 30 pairs a ranks every second one right, b all."""
    folders = []
    for name, second in (("a", -1.0), ("b", 1.0)):
        rows = [
            {"id": f"r{i}", "prompt": "?", "responses": ["x", "y"], "scores": [2, 1], "rewards": [margin, 0.0]}
            for i in range(30)
            for margin in [1.0 if i % 2 else second]
        ]
        folders.append(run_folder(name, files={"scored.jsonl": "".join(json.dumps(row) + "\n" for row in rows)}))
        words = ["apo", "eval", f"human={folders[-1] / 'scored.jsonl'}", "--output", str(folders[-1] / "eval.json")]
        assert CliRunner().invoke(app, words).exit_code == 0
    found = comparison(*folders)
    accuracy, margin = (found.differences[f"human rewards/{name}"][0] for name in ("accuracies", "margins"))
    assert (accuracy.value, accuracy.number, accuracy.verdict) == (pytest.approx(0.5), 30, "better")
    assert accuracy.records == pytest.approx((0.32, 0.68), abs=0.04)
    assert (margin.value, margin.verdict) == (pytest.approx(1.0), "better")


def answers_scored(run_folder, name, gain, *, by, stage):
    """Two answers to each of nine queries, with rewards by a model that their report names."""
    rows = [{"id": f"q{i}", "prompt": "?", "responses": ["x", "y"], "rewards": [i + gain, gain]} for i in range(9)]
    files = {"scored.jsonl": "".join(json.dumps(row) + "\n" for row in rows)}
    files["scored.report.json"] = json.dumps({"job": "apo score", "model": by})
    folder = run_folder(name, files=files, receipt=receipt(1) | {"stage": stage})
    words = ["apo", "eval", f"answers={folder / 'scored.jsonl'}", "--output", str(folder / "eval.json")]
    assert CliRunner().invoke(app, words).exit_code == 0
    return folder


def test_rewards_of_answers_by_one_model_are_compared_answer_by_answer_whatever_was_trained(run_folder):
    before = answers_scored(run_folder, "a", 0.0, by="testing", stage="tdpo")
    after = answers_scored(run_folder, "b", 0.5, by="testing", stage="sepo")
    other = answers_scored(run_folder, "c", 0.5, by="another", stage="sepo")
    (reward,) = comparison(before, after).differences["answers rewards/mean"]
    assert (reward.value, reward.number, reward.verdict) == (pytest.approx(0.5), 18, "better")
    assert reward.records == pytest.approx((0.5, 0.5))
    (reward,) = comparison(before, other).differences["answers rewards/mean"]
    assert (reward.verdict, reward.why) == ("not comparable", "another stage has another unit")


def test_of_a_log_the_last_quarter_is_the_figure_and_all_of_it_the_curve(run_folder):
    folder = run_folder("a", losses=[8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0])
    (only,) = read_runs([str(folder)], RECEIPTS)
    assert only.figures["train loss"].value == 1.5
    assert only.curves == {"loss": [(i, 9.0 - i) for i in range(1, 9)]}


def test_the_report_names_groups_differences_and_how_sure_they_are(run_folder, tmp_path):
    """Differences .20, .21 and .19: standard error .01 / sqrt(3), t(2) = 4.303, so .2 -+ .0248."""
    figures = {"a": (0.50, 0.52, 0.54), "b": (0.70, 0.73, 0.73)}
    folders = [
        run_folder(f"{name}{seed}", {"eval_acc": acc}, receipt=receipt(seed, tdpo_alpha=alpha), losses=[2.0, 1.0])
        for name, alpha in (("a", 0.5), ("b", 0.1))
        for seed, acc in enumerate(figures[name], start=1)
    ]
    out = tmp_path / "report"
    told = run(*folders, "--output", out)
    assert "tdpo_alpha=0.1 (seeds 1, 2, 3) against tdpo_alpha=0.5 (seeds 1, 2, 3):" in told
    assert "- better: eval_acc by +0.2000 (+0.1752 to +0.2248 over seeds)" in told
    text = (out / "report.md").read_text()
    assert "![figures](figures.png)" in text
    assert "| eval_acc | 0.5200 ± 0.0200 | 0.7200 ± 0.0173 |" in text
    assert "- of 1 held-out figures: better in 1" in text
    assert "not comparable (its unit depends on tdpo_alpha): train loss" in text
    page = (out / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 2
    assert not re.search(r'(src|href)="(?!data:)', page)
    rows = [*csv.DictReader((out / "report.csv").open())]
    assert [(row["group"], row["verdict"]) for row in rows if row["figure"] == "eval_acc"] == [
        ("tdpo_alpha=0.5", ""),
        ("tdpo_alpha=0.1", "better"),
    ]
    assert json.loads((out / "report.json").read_text())["differences"]["eval_acc"][0]["verdict"] == "better"


def test_markup_in_a_name_is_shown_as_it_is(run_folder, tmp_path):
    folder = run_folder("a", {"eval_<b>[red]acc": 0.5}, receipt=receipt())
    told = run(f"[bold]x={folder}", "--output", tmp_path / "out")
    assert "[bold]x" in told
    assert "eval_<b>[red]acc" in told
    assert "eval_&lt;b&gt;" in (tmp_path / "out/report.html").read_text()


def test_labels_make_groups_and_only_keeps_the_figures_asked_for(run_folder):
    a, b = (run_folder(name, {"eval_acc": 0.5, "eval_f1": 0.5}) for name in ("a", "b"))
    told = run(f"one={a}", f"one={b}", "--only", "acc")
    assert "one" in told
    assert "eval_f1" not in told
    assert "no figure of these runs has 'nothing' in its name" in run(a, "--only", "nothing", code=1)


TORN = '{"stage": "tdpo", "se'


@pytest.mark.parametrize(
    ("files", "code", "place", "text"),
    [
        ({"README.md": "x"}, "FP306", "run", "it has no receipt, trainer_state.json, trainer_log.jsonl"),
        ({"finepref_receipt.json": receipt()}, "FP306", "run", "it has a receipt, but no figures"),
        (
            {
                "finepref_receipt.json": receipt(),
                "trainer_state.json": {"log_history": [{"step": 4, "train_loss": 1.0, "train_runtime": 9.0}]},
            },
            "FP306",
            "run",
            "it was not evaluated, and ended before its log had an entry",
        ),
        ({"finepref_receipt.json": TORN}, "FP307", "finepref_receipt.json", "it is not whole JSON"),
        (
            {"finepref_receipt.json": {"stage": "x"}},
            "FP307",
            "finepref_receipt.json",
            "settings, seed, datasets, run miss",
        ),
        ({"all_results.json": "[]"}, "FP307", "all_results.json", "it holds no JSON object"),
        ({"trainer_log.jsonl": 'x\n{"loss": 1}\n'}, "FP307", "trainer_log.jsonl:1", "the line is not JSON"),
        ({"trainer_state.json": {}}, "FP307", "trainer_state.json", "it has no log_history"),
        (
            {"trainer_log.jsonl": '{"current_steps": 5, "total_steps": 8, "loss": 1.0}\n{"curr'},
            "FP308",
            "run",
            "the run did not end: it stopped after 5 of 8 steps; resume it, or take it as it is with --unfinished",
        ),
        (
            {"all_results.json": {"eval_acc": 1.0}, "margins.json": {"job": "other"}},
            "FP307",
            "margins.json",
            "it is not a file of `finepref margins`",
        ),
    ],
    ids=[
        "nothing",
        "no figures",
        "fewer steps than logging_steps",
        "torn receipt",
        "half a receipt",
        "a list",
        "bad line",
        "no history",
        "stopped",
        "other",
    ],
)
def test_a_torn_or_unknown_folder_is_one_line_that_names_what_is_missing(run_folder, files, code, place, text):
    folder = run_folder("run", files=files)
    with pytest.raises(BadData) as caught:
        read_runs([str(folder)], RECEIPTS)
    (problem,) = caught.value.problems
    where = f"{problem.file}:{problem.line}" if problem.line else problem.file
    assert (problem.code, where.endswith(place)) == (code, True)
    assert text in problem.message
    assert run(folder, code=1).splitlines()[0].startswith(f"{code} ")


def test_a_run_that_did_not_end_is_taken_with_a_note_if_that_is_asked_for(run_folder):
    folder = run_folder(
        "a", {"eval_acc": 0.5}, files={"trainer_log.jsonl": '{"current_steps": 5, "total_steps": 8}\n'}
    )
    assert f"note: {folder}: it stopped after 5 of 8 steps" in run(folder, "--unfinished").replace("\n", "")


def test_a_run_that_is_not_there_or_given_twice_is_named(run_folder, tmp_path):
    folder = run_folder("a", {"eval_acc": 0.5})
    assert "FP305" in run(tmp_path / "nowhere", code=1)
    assert "FP309" in run(folder, f"x={folder}/.", code=1)
    assert f"did you mean {folder.parent / 'b'}?" in " ".join(
        run(run_folder("b", losses=[1.0, 1.0]).parent, code=1).split()
    )
