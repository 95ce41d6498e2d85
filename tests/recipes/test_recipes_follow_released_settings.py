"""Each recipe sets what the authors set, or says at the key what they set and why it differs.

The form of such a comment is `key: value   # released: THEIR VALUE; the reason`. A setting that the host does not have
stands in a comment line of its own: `# key:   # released: THEIR VALUE; the reason`.
"""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
RELEASED = tomllib.loads((Path(__file__).parent / "released_settings.toml").read_text(encoding="utf-8"))
FLAGS = RELEASED.pop("openrlhf")
PAIRS = [
    pytest.param(name, recipe, id=f"{name}: {recipe}") for name, step in RELEASED.items() for recipe in step["recipes"]
]
# Recipes that no command of the authors corresponds to.
OWN = {
    "apo_rm_export.yaml",
    "dpo_pl.yaml",
    "plackett_luce.yaml",
    "reversegen_export.yaml",
    "tdpo_export.yaml",
    "pipelines/apo_demo.yaml",
    "pipelines/reversegen_honesty_demo.yaml",
    "pipelines/reversegen_math_demo.yaml",
    "openrlhf/dpo_pl.sh",
    "pipelines/reversegen_safety_demo.yaml",
    "openrlhf/plackett_luce.sh",
}
ABSENT = "absent"


class Setting(NamedTuple):
    """A value of a recipe and the comment at its line."""

    value: object
    comment: str = ""


def settings_of(recipe: str) -> dict[str, Setting]:
    """The settings of a recipe in the names of the table, those in comment lines included as absent."""
    name, _, section = recipe.partition("#")
    text = (EXAMPLES / name).read_text(encoding="utf-8")
    if name.endswith(".sh"):
        return of_flags(script_flags(text))
    found = {key: Setting(value, comment) for key, value, comment in yaml_settings(text)}
    if section:
        inside = {key.removeprefix(f"{section}."): each for key, each in found.items() if key.startswith(section)}
        return of_flags(inside | {key: each for key, each in found.items() if each.value is ABSENT})
    if "bf16" in found:
        value, comment = found["bf16"]
        found["precision"] = Setting("bf16" if value else "float32", comment)
    if accumulation := found.get("gradient_accumulation_steps"):
        found["train_batch_size"] = Setting(batch_size(found), accumulation.comment)
    if "adam_beta2" in found:
        found["adam_betas"] = Setting([found["adam_beta1"].value, found["adam_beta2"].value])
    if "propose.prompts" in found:
        found["propose.total"] = Setting(found["propose.prompts"].value * found["propose.n"].value)
    return found


def batch_size(found: Mapping[str, Setting]) -> int:
    """Devices x micro-batch x accumulation. The comment names the devices and states the product."""
    comment = found["gradient_accumulation_steps"].comment
    match = re.search(r"on (\d+) GPUs?: a batch of (\d+)", comment)
    assert match, f"gradient_accumulation_steps does not say on how many GPUs which batch results: {comment!r}"
    keys = ("per_device_train_batch_size", "gradient_accumulation_steps")
    total = int(match[1]) * found[keys[0]].value * found[keys[1]].value
    assert total == int(match[2]), f"{comment!r}, but it is {total}"
    return total


def yaml_settings(text: str) -> list[tuple[str, object, str]]:
    """(dotted key, value, comment of its line) of every leaf, then of every `# key:  # comment` line."""
    lines = text.splitlines()
    found: list[tuple[str, object, str]] = []

    def walk(node: yaml.Node, prefix: str) -> None:
        for key, value in node.value:
            name = f"{prefix}{key.value}"
            if isinstance(value, yaml.MappingNode):
                walk(value, f"{name}.")
            else:
                (constructed,) = yaml.safe_load(yaml.serialize(yaml.SequenceNode("tag:yaml.org,2002:seq", [value])))
                found.append((name, constructed, lines[key.start_mark.line].partition(" #")[2].strip()))

    walk(yaml.compose(text), "")
    for line in lines:
        if match := re.fullmatch(r" *# (\w+): +# (.*)", line):
            found.append((match[1], ABSENT, match[2]))
    return found


def script_flags(text: str) -> dict[str, Setting]:
    """The flags of a script; a flag without a value is true, and `#   key: comment` lines are absent settings."""
    found: dict[str, Setting] = {}
    for line in text.splitlines():
        if match := re.match(r"    --([\w.-]+)([^`\\]*)(?:`# (.*)`)?", line):
            words = shlex.split(re.sub(r"\$\{\w+:-(.*)\}", r"\1", match[2]))
            values = [yaml.safe_load(word) for word in words]
            found[match[1]] = Setting(values if len(values) > 1 else values[0] if values else True, match[3] or "")
        elif match := re.match(r"#   (\w+): (released: .*)", line):
            found[match[1]] = Setting(ABSENT, match[2])
    return found


def of_flags(flags: Mapping[str, Setting]) -> dict[str, Setting]:
    """The flags of OpenRLHF under the names of the table."""
    found = {name: flags[flag] for name, flag in FLAGS.items() if flag in flags}
    found |= {name: each for name, each in flags.items() if each.value is ABSENT}
    lora = flags.get("ds.lora.rank")
    found["finetuning_type"] = Setting("lora", lora.comment) if lora else Setting("full")
    return found


def offered_for_evaluation(recipe: str) -> dict[str, object]:
    """The commented settings below `### eval`."""
    text = (EXAMPLES / recipe).read_text(encoding="utf-8").partition("### eval")[2]
    return {key: yaml.safe_load(value) for key, value in re.findall(r"^# (\w+): (\S+)", text, re.M)}


def same(ours: object, theirs: object) -> bool:
    """Equal as numbers, lists or texts; of models and files the last part counts; all linear layers are `all`."""
    if isinstance(ours, list) and isinstance(theirs, list):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    if isinstance(ours, bool) or isinstance(theirs, bool):
        return ours is theirs
    if isinstance(ours, int | float) and isinstance(theirs, int | float):
        return float(ours) == float(theirs)
    words = {"all-linear": "all"}
    ours, theirs = (words.get(str(each), str(each).rsplit("/", 1)[-1]) for each in (ours, theirs))
    return ours == theirs or number(ours) == number(theirs) is not None


def number(word: str) -> float | None:
    """YAML reads 5e-6 as a text."""
    try:
        return float(word)
    except ValueError:
        return None


def difference(setting: Setting | None, theirs: object) -> str:
    """What is wrong with a setting, "" if it is the authors' or says what they have and why it is another."""
    if setting is not None and setting.value is not ABSENT and same(setting.value, theirs):
        return "claims to differ" if "released:" in setting.comment else ""
    if setting is None:
        return "is missing"
    said = re.search(r"released: ([^;]*); \w+", setting.comment)
    if not said:
        return f"is {setting.value!r} and gives no reason"
    stated = yaml.safe_load(said[1])
    return "" if same(stated, theirs) else f"says that {stated!r} was released"


@pytest.mark.parametrize(("step", "recipe"), PAIRS)
def test_every_setting_is_the_authors_or_says_what_theirs_is_and_why_it_differs(step, recipe):
    ours = settings_of(recipe)
    on_openrlhf = recipe.endswith((".sh", "#reward"))
    wrong = []
    for key, theirs in RELEASED[step]["settings"].items():
        if on_openrlhf and FLAGS.get(key) == "":
            continue
        if "#" in recipe and key == "model_name_or_path":
            continue  # the pipeline sets it
        if said := difference(ours.get(key), theirs):
            wrong.append(f"{key} {said}; released: {theirs!r} ({RELEASED[step]['source']})")
    assert not wrong, "\n".join([recipe, *wrong])


@pytest.mark.parametrize(("step", "recipe"), PAIRS)
def test_the_evaluation_that_a_recipe_offers_is_the_authors(step, recipe):
    theirs = RELEASED[step].get("evaluation", {})
    if recipe.endswith(".yaml") and "/" not in recipe:
        offered = offered_for_evaluation(recipe)
        assert {key: offered.get(key) for key in theirs} == theirs


@pytest.mark.parametrize(("step", "recipe"), PAIRS)
def test_what_a_recipe_calls_not_given_is_not_in_the_table(step, recipe):
    known = RELEASED[step]["settings"]
    assert [key for key, each in settings_of(recipe).items() if "not given" in each.comment and key in known] == []


def test_every_recipe_is_compared_with_a_command_of_the_authors_or_known_to_have_none():
    files = {path.relative_to(EXAMPLES).as_posix() for kind in ("*.yaml", "*.sh") for path in EXAMPLES.rglob(kind)}
    compared = {recipe.partition("#")[0] for step in RELEASED.values() for recipe in step["recipes"]}
    others = {file for file in files if file.startswith(("own_stage/", "accelerate/"))}  # a package, a launcher
    assert files - others == compared | OWN
    assert not compared & OWN


def test_every_training_in_16_bits_says_what_to_set_on_a_cpu():
    recipes = [path for path in EXAMPLES.glob("*.yaml") if "\nbf16: true" in path.read_text(encoding="utf-8")]
    assert len(recipes) >= 12
    for path in recipes:
        (comment,) = (said for key, _, said in yaml_settings(path.read_text(encoding="utf-8")) if key == "bf16")
        assert comment.endswith("on a CPU: false"), path.name


@pytest.mark.parametrize(
    ("line", "theirs", "wrong"),
    [
        ("lr: 1.0e-6", 1e-6, ""),
        ("lr: 1.0e-6    # released: 1e-7; a reason", 1e-7, ""),
        ("lr: 1.0e-6    # a reason", 1e-7, "is 1e-06 and gives no reason"),
        ("lr: 1.0e-6    # released: 1e-7", 1e-7, "is 1e-06 and gives no reason"),
        ("lr: 1.0e-6    # released: 1e-8; a reason", 1e-7, "says that '1e-8' was released"),
        ("lr: 1.0e-6    # released: 1e-6; a reason", 1e-6, "claims to differ"),
        ("# lr:    # released: 1e-7; a reason", 1e-7, ""),
        ("other: 1", 1e-7, "is missing"),
        ("lr: true", 1, "is True and gives no reason"),
    ],
)
def test_the_comparison_itself(line, theirs, wrong):
    found = {key: Setting(value, comment) for key, value, comment in yaml_settings(f"first: 1\n{line}\n")}
    assert difference(found.get("lr"), theirs) == wrong
