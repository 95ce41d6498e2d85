"""The table of suites: every task and figure is in the installed lm-eval, and lines of tables are means by hand."""

from __future__ import annotations

import pytest
from finepref.evals.suites import LOCAL, SUITES, Wanted, table, wanted
from finepref.formats.problems import BadData
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

PARTS = [
    pytest.param(part, id=f"{name}-{part.label}")
    for name, parts in SUITES.items()
    for part in parts
    if part.tasks[0] not in LOCAL
]


@pytest.fixture(scope="module")
def manager():
    return TaskManager()


def configs(manager, name):
    """The files of a task, or of all tasks in a group, without loading their data."""
    entry = manager.task_index[name]
    if entry.yaml_path is None:  # a tag
        return [found for each in sorted(entry.tags) for found in configs(manager, each)]
    config = load_yaml(entry.yaml_path, resolve_func=False, recursive=True)
    if name not in manager.all_groups:
        return [config]
    members = [each if isinstance(each, str) else each["task"] for each in config["task"]]
    return [found for each in members for found in configs(manager, each)]


@pytest.mark.parametrize("part", PARTS)
def test_every_task_of_a_suite_is_one_of_lm_evals_and_gives_its_figure(manager, part):
    metric, _, kind = part.metric.partition(",")
    for task in part.tasks:
        assert task in manager.all_tasks
        for config in configs(manager, task):
            if metric == "ece":  # ours, of tasks with one right choice
                assert config["output_type"] == "multiple_choice"
                assert "process_results" not in config
                continue
            texts = [str(each["metric"]) for each in config["metric_list"]]
            wanted_name = "pass_at_k" if metric.startswith("pass@") else metric
            assert any(wanted_name in each for each in texts) or "process_results" in config
            filters = [each["name"] for each in config.get("filter_list") or [{"name": "none"}]]
            assert kind in filters


@pytest.mark.parametrize("part", PARTS)
def test_the_number_of_examples_in_a_label_is_that_of_the_task(manager, part):
    shots = {config.get("num_fewshot") for task in part.tasks for config in configs(manager, task)}
    if part.num_fewshot is None:
        assert None not in shots or part.label.startswith("TruthfulQA")
    else:
        assert 0 not in shots or part.num_fewshot == 0  # lm-eval keeps a 0 of the file, whatever is asked for
    if "-shot" in part.label:
        assert f"{part.num_fewshot}-shot" in part.label


def test_no_name_of_ours_hides_a_task_of_lm_eval(manager):
    assert not {*SUITES, *LOCAL, "local"} & {*manager.all_tasks}


def test_the_tasks_of_several_suites_are_run_once_and_in_order():
    names = [each.name for each in wanted(["honesty", "truthfulqa_mc1", "tiny"])]
    assert names == ["mmlu", "truthfulqa_mc1", "truthfulqa_mc2", "tiny"]
    assert wanted(["honesty"])[0] == Wanted("mmlu", 5)


def test_a_skipped_task_is_left_out_and_an_unknown_one_is_told():
    assert "humaneval" not in [each.name for each in wanted(["seapo"], skip=["humaneval"])]
    with pytest.raises(BadData, match=r"FP300 humanevil: is not among the tasks: bbh_cot_fewshot, humaneval"):
        wanted(["seapo"], skip=["humanevil"])


def test_local_is_what_needs_no_data_and_what_has_some():
    assert [each.name for each in wanted(["local"])] == ["gym"]
    assert [each.name for each in wanted(["local"], data=["letters"])] == ["gym", "letters"]


def test_a_line_of_several_tasks_is_the_mean_over_all_documents():
    """MATH is 7 tasks: 30 documents with .5, 10 with .1, and 10 with 0 in each of the other five."""
    names = SUITES["seapo"][3].tasks
    sizes, values = [30, *[10] * 6], [0.5, 0.1, *[0.0] * 5]
    tasks = {
        name: {"n": n, "metrics": {"math_verify,none": {"value": value, "stderr": 0.01}}}
        for name, n, value in zip(names, sizes, values, strict=True)
    }
    line = table("seapo", tasks)["MATH, 4-shot"]
    assert line["value"] == pytest.approx((30 * 0.5 + 10 * 0.1) / 90)
    assert line["stderr"] == pytest.approx(0.01 * (30**2 + 6 * 10**2) ** 0.5 / 90)
    assert line["n"] == 90


def test_a_line_is_there_only_with_all_of_its_tasks():
    assert table("seapo", {"minerva_math_algebra": {"n": 1, "metrics": {"math_verify,none": {"value": 1.0}}}}) == {}
