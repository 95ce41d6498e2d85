"""The plans, tasks, verdicts and pages of docs/reproduction; LLaMA-Factory's test_reproduction.py runs one."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import pytest
import yaml
from finepref import stages
from finepref.pipelines.run_comparison import Difference
from finepref.pipelines.run_folders import Figure, Run
from finepref.pipelines.steps import Pipeline

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "reproduce"))

import concentration  # noqa: E402
import results  # noqa: E402
import tasks  # noqa: E402
from arms import Runs, every  # noqa: E402
from experiment import PAGES, Experiment, load  # noqa: E402

PAPERS = sorted(file.parent.name for file in PAGES.glob("*/experiment.yaml"))


def run(arm, seed, **figures):
    receipt = {"stage": "tdpo", "settings": {}, "seed": seed, "datasets": [], "run": {}}
    return Run(f"{arm} {seed}", Path("x"), arm, receipt, {name: Figure(value) for name, value in figures.items()})


def experiment(**more):
    given = {"datasets": {}, "steps": {}, "train": {}, "arms": {"a": {}, "b": {}}, "figures": {"eval_x": "x"}}
    return Experiment(page=Path("x"), paper="P", seeds=3, **(given | {"claims": []} | more))


CLAIM = {"text": "b above a", "paper": "2 against 1", "figure": "eval_x", "arm": "b", "against": "a"}


@pytest.mark.parametrize(
    ("value", "said", "expected", "verdict"),
    [
        (0.5, "higher", "higher", "shown"),
        (-0.5, "worse", "lower", "shown"),
        (-0.5, "worse", "higher", "against"),
        (0.5, "better", "lower", "against"),
        (9.0, "not shown", "higher", "not shown"),
        (9.0, "not comparable", "higher", "not shown"),
    ],
)
def test_a_claim_is_shown_by_a_difference_that_is_one_on_its_side(value, said, expected, verdict):
    assert results.verdict(Difference(value, None, 0, None, said), expected) == verdict


def test_three_seeds_are_paired_and_judged_by_students_interval():
    """Differences .5, .6, .7: mean .6, standard error .1 / sqrt 3, t(2) = 4.303."""
    runs = [run("a", seed, eval_x=1.0 + seed) for seed in (1, 2, 3)]
    runs += [run("b", seed, eval_x=1.0 + seed + gain) for seed, gain in ((1, 0.5), (2, 0.6), (3, 0.7))]
    claims = [CLAIM | {"expected": "higher"}, CLAIM | {"expected": "lower"}]
    found = results.judged(experiment(claims=claims), runs)
    assert [each["verdict"] for each in found] == ["shown", "against"]
    width = 4.303 * 0.1 / 3**0.5
    assert found[0]["difference"] == pytest.approx(0.6)
    assert found[0]["seeds"] == pytest.approx((0.6 - width, 0.6 + width))
    cell = results.summary(experiment(), runs)["eval_x"]["a"]
    assert cell["interval"] == pytest.approx([3.0 - 4.303 / 3**0.5, 3.0 + 4.303 / 3**0.5])


def test_noise_is_not_called_a_rise():
    runs = [run("a", seed, eval_x=1.0) for seed in (1, 2, 3)]
    runs += [run("b", seed, eval_x=1.0 + gain) for seed, gain in ((1, 0.9), (2, 0.1), (3, 0.2))]
    (found,) = results.judged(experiment(claims=[CLAIM | {"expected": "higher"}]), runs)
    assert (found["verdict"], found["why"]) == ("not shown", "an interval holds 0")


def test_a_second_run_is_the_same_only_if_every_figure_is():
    one, other = run("a", 1, x=1.0, y=2.0), run("a", 1, x=1.0, y=2.0 + 1e-15)
    assert results.same(one, one) == {"run": "a 1", "figures": 2, "differing": {}}
    assert results.same(one, run("a", 1, x=1.0))["differing"] == {"y": [2.0, None]}
    assert other.figures["y"].value != 2.0
    assert results.same(one, other)["differing"] == {"y": [2.0, other.figures["y"].value]}


def test_only_what_is_between_the_marks_of_a_page_is_replaced():
    page = f"plan\n{results.BEGIN}\nold\n{results.END}\nafter\n"
    made = results.filled(page, "new")
    assert made == f"plan\n{results.BEGIN}\n\nnew\n\n{results.END}\nafter\n"
    assert results.filled(made, "new") == made
    with pytest.raises(ValueError, match="the page needs the lines"):
        results.filled("plan", "new")


@pytest.mark.parametrize("paper", PAPERS)
def test_every_plan_is_whole_and_its_recipes_are_there(paper):
    for small in (False, True):
        found = load(PAGES / paper, small=small)
        recipes = [each["recipe"] for each in (found.train, *found.arms.values()) if "recipe" in each]
        recipes += [step["recipe"] for step in found.steps.values() if isinstance(step, dict)]
        assert recipes
        assert all((ROOT / recipe).is_file() for recipe in recipes)
        page = (PAGES / paper / "README.md").read_text(encoding="utf-8")
        assert results.filled(page, "x")
        assert all(arm.split()[-1] in page.lower() for arm in found.arms)


@pytest.mark.parametrize("paper", PAPERS)
def test_the_stage_of_every_arm_takes_its_options(paper):
    for small in (False, True):
        plan = load(PAGES / paper, small=small)
        for arm in plan.arms.values():
            own = {**plan.train, **arm}
            keys = yaml.safe_load((ROOT / own["recipe"]).read_text(encoding="utf-8")) | own
            if stage := stages.find(keys["stage"]):
                stage.read_options("llamafactory", keys, lambda name, _: name)


def test_results_have_every_arm_seed_and_claim_and_verdicts_that_follow():
    done = [paper for paper in PAPERS if (PAGES / paper / "results.json").exists()]
    for paper in done:
        check(paper)
    assert "tdpo" in done


def check(paper):
    plan, found = load(PAGES / paper), json.loads((PAGES / paper / "results.json").read_text())
    page = (PAGES / paper / "README.md").read_text(encoding="utf-8")
    assert len(found["seeds"]) >= plan.seeds >= 3
    for arm in plan.arms:
        own = [each["seed"] for each in found["runs"] if each["arm"] == arm]
        assert own == (found["seeds"] if plan.trains(arm) else [None])
    assert [claim["text"] for claim in found["claims"]] == [claim["text"] for claim in plan.claims]
    runs = [run(each["arm"], each["seed"], **each["figures"]) for each in found["runs"]]
    for stored, claim in zip(found["claims"], results.judged(plan, runs), strict=True):
        assert f"| {stored['text']} |" in page
        if stored.get("records") is None:
            assert stored["verdict"] == claim["verdict"]
        if stored.get("seeds"):
            assert stored["seeds"] == pytest.approx(list(claim["seeds"]))
    assert found["again"]["differing"] == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arm": "c"}, "which is no arm"),
        ({"figure": "eval_y"}, "which is no figure"),
        ({"expected": "up"}, "neither higher nor lower"),
    ],
)
def test_a_claim_about_what_is_not_there_is_refused(tmp_path, change, message):
    own = {"paper": "P", "seeds": 3, "datasets": {}, "steps": {}, "train": {}, "arms": {"a": {}, "b": {}}}
    own |= {"figures": {"eval_x": "x"}, "claims": [CLAIM | {"expected": "higher"} | change]}
    (tmp_path / "experiment.yaml").write_text(yaml.safe_dump(own))
    with pytest.raises(ValueError, match=message):
        load(tmp_path)
    (tmp_path / "experiment.yaml").write_text(yaml.safe_dump(own | {"armz": {}}))
    with pytest.raises(ValueError, match="unknown key armz"):
        load(tmp_path)


TUNE = {"arms": ["a", "z"], "key": "k", "values": [1], "figure": "f", "expected": "higher", "measures": {}}


def test_an_arm_that_is_tuned_must_be_there_and_what_is_better_must_be_known(tmp_path):
    own = {"paper": "P", "seeds": 3, "datasets": {}, "steps": {}, "train": {}, "arms": {"a": {}}, "figures": {}}
    (tmp_path / "experiment.yaml").write_text(yaml.safe_dump(own | {"claims": [], "tune": TUNE}))
    with pytest.raises(ValueError, match="tune has z, which is no arm"):
        load(tmp_path)
    (tmp_path / "experiment.yaml").write_text(yaml.safe_dump(own | {"claims": [], "tune": TUNE | {"expected": "up"}}))
    with pytest.raises(ValueError, match="tune expects neither higher nor lower"):
        load(tmp_path)


def test_an_arm_replaces_or_leaves_out_what_is_done_after_its_training():
    then = {"scored": "score", "policy": {"recipe": "r"}}
    arms = {
        "a": {},
        "b": {"untrained": "m", "then": {"scored": "first"}},
        "c": {"untrained": "m", "then": {"scored": None, "policy": None}},
    }
    own = experiment(arms=arms, then=then, measures={"x": "measure"})
    assert own.part("then", "a") == then
    assert own.part("then", "b") == {"scored": "first", "policy": {"recipe": "r"}}
    assert own.part("then", "c") == {}
    assert own.part("measures", "c") == {"x": "measure"}
    assert [own.trains(arm) for arm in arms] == [True, True, False]


def test_the_page_tells_every_value_that_was_tried_and_marks_the_best():
    tuning = {"key": "learning_rate", "seed": 0, "figure": "eval_x"}
    tuning |= {
        "values": {"a": {"0.1": 0.25, "0.2": 0.5}, "b": {"0.1": 0.75, "0.2": 0.5}},
        "best": {"a": 0.2, "b": 0.1},
    }
    told, rows = results._tuned(tuning)
    assert "with seed 0, by `eval_x`" in told
    assert "| `learning_rate` | 0.1 | 0.2 |" in rows
    assert "| a | 0.25 | **0.5** |" in rows
    assert "| b | **0.75** | 0.5 |" in rows


def test_parts_of_a_task_share_no_prompt_and_the_chosen_review_has_more_good_words():
    parts = {part: [*tasks.reviews(part, 40, seed=1)] for part in ("sft", "pairs", "held_out", "questions")}
    prompts = {name: {row.get("prompt") or row["instruction"] for row in rows} for name, rows in parts.items()}
    assert sum(map(len, prompts.values())) == len(set().union(*prompts.values()))
    for row in parts["pairs"]:
        assert tasks.good_words(row["chosen"]) > tasks.good_words(row["rejected"])
    assert [*tasks.reviews("pairs", 40, seed=1)] == parts["pairs"]
    assert [*tasks.reviews("pairs", 40, seed=2)] != parts["pairs"]


def test_golden_answers_are_in_a_good_mood_and_have_a_manner_of_their_own():
    rows = [*tasks.golden("questions", 40, seed=1)]
    own = {row["prompt"] for row in tasks.reviews("held_out", 40, seed=1)}
    assert not own & {row["query"] for row in rows}
    assert all(row["golden"].startswith("To sum up: The ") and tasks.is_review(row["golden"]) for row in rows)
    good = sum(tasks.good_words(row["golden"]) for row in rows) / 40
    assert 0.85 < good < 0.95  # nine of ten words


def test_the_grade_of_a_review_counts_its_good_words():
    text = "The hall was great, the view was bad, the food was lovely and the light was poor."
    assert (tasks.good_words(text), tasks.is_review(text)) == (0.5, True)
    assert tasks.good_words("The hall was great.") == 0.0
    assert not tasks.is_review(text + " The floor was bad.")


def test_the_sums_are_right():
    for row in tasks.sums("questions", 30, seed=3):
        first, second, last = row["chosen"].split("\n")
        for line in (first, second):
            left, _, result = line.partition(" = ")
            assert eval(left) == int(result)
        assert last == f"The answer is {row['answer']}."
        assert second.endswith(f"= {row['answer']}")


def test_the_fewest_tokens_that_carry_four_fifths_of_a_difference():
    """Added: 3, 1, .5, .5, 0; 4 of 5 are reached by the first two of five tokens."""
    found = concentration.parts([3.0, 0.5, 0.0], [-1.0, -0.5])
    assert found == pytest.approx([0.6, 0.8, 0.9, 1.0, 1.0])
    assert concentration.share(found) == pytest.approx(2 / 5)
    assert [concentration.part_of(found, at) for at in (0.0, 0.15, 0.2, 0.4, 1.0)] == pytest.approx(
        [0, 0, 0.6, 0.8, 1]
    )
    assert concentration.share(concentration.parts([1.0, -0.5], [0.0])) == pytest.approx(1 / 3)
    assert concentration.parts([0.0], [1.0]) is None


def test_a_fact_with_a_curve_is_drawn(tmp_path):
    curve = {"x": "x", "y": "y", "points": [[0.0, 0.0, 0.0, 0.0], [1.0, 0.5, 0.4, 0.6]]}
    assert results._draw("fact", curve, tmp_path).read_bytes().startswith(b"\x89PNG")


def test_a_measure_is_done_once_for_a_model_that_is_not_trained(tmp_path, capsys):
    """It writes into its folder, which is then there when the experiment is run again."""
    metrics = json.dumps({"tasks": {"answers": {"metrics": {"right": {"value": 0.25}}}}}).replace("{", "{{")
    write = f"from pathlib import Path; import sys; Path(sys.argv[1]).write_text('{metrics.replace('}', '}}')}')"
    command = f"python -c {shlex.quote(write)} {{output}}/results.json"
    own = experiment(arms={"before": {"untrained": "{folder}/model"}}, measures={"answers": command})
    times = []
    for count in (0, 1):
        with Pipeline(tmp_path) as pipeline:
            (found,) = every(Runs(own, pipeline), 3)
        assert (found.label, found.figures["answers right"].value) == ("before", 0.25)
        assert capsys.readouterr().out.count("already done") == count
        times.append(json.loads((tmp_path / "cpu.json").read_text()))
    assert times[0].keys() == {"runs/before-1/answers"}
    assert times[0] == times[1], "a step that was done before keeps its CPU time"
