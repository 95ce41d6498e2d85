"""The web UI's form for our stages: elements, words, data sets, the command that comes out, and what it refuses."""

from __future__ import annotations

import os
from typing import get_args

import pytest
import webui_form
from conftest import DATASETS
from finepref import stages
from sample_rows import rows, write_rows

STAGES = sorted(stages.all_stages())
LANGUAGES = ("en", "ru", "zh", "ko", "ja")
UNCHANGED = {"Gamma", "Alpha"}  # the same word in Chinese


@pytest.fixture(scope="module")
def ui(tmp_path_factory):
    """Started in an empty folder, so that no saved configuration interferes."""
    before = os.getcwd()
    os.chdir(tmp_path_factory.mktemp("webui"))
    yield webui_form.build()
    os.chdir(before)


@pytest.fixture
def args(ui, tiny_model, sums):
    """The command of a form: a stage, its data set of the tests, and other values by element name."""
    from finepref.hosts.llamafactory.webui import forms

    def command(stage, **values):
        label = forms.label_of(stages.find(stage)) if stage in STAGES else stage
        form = ui.form(tiny_model, training_stage=label, dataset_dir=str(sums), **values)
        return ui.runner._parse_train_args(form), form

    return command


def own_keys(stage):
    return [*options_of(stage)]


def options_of(stage):
    return stages.find(stage).options.new_on("llamafactory")


def another_value(stage, key):
    """A value that the form can send and that is not the key's default."""
    _, kind, default, *_ = options_of(stage)[key]
    if kind is bool:
        return not default
    if kind is str:
        return "logic"
    if default is None:
        return "4096" if int in get_args(kind) else "0.25"
    choices = [value for value in get_args(kind) if isinstance(value, str)]
    return next((value for value in choices if value != default), 0.25 if kind is not int else 3)


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_is_in_the_list_and_every_option_has_a_label_and_help_in_every_language(ui, stage, language):
    choices = [value for _, value in ui.manager.get_elem_by_id("train.training_stage").choices]
    (label,) = [choice for choice in choices if choice.endswith(f"({stage})")]
    english = ui.engine.change_lang("en")
    words = ui.engine.change_lang(language)
    accordion = ui.manager.get_elem_by_id(f"train.{stage}_tab")
    assert label in words[accordion].label
    names = own_keys(stage) + ["kto_chosen_weight", "kto_rejected_weight"] * (stage == "seapo_kto")
    for key in names:
        element = ui.manager.get_elem_by_id(f"train.{stage}.{key}")
        assert words[element].label
        assert words[element].info
        if language != "en":
            assert words[element].info != english[element].info, key
            assert words[element].label != english[element].label or words[element].label in UNCHANGED, key


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_view_of_tokens_and_the_forms_that_make_data_have_their_words_in_every_language(ui, language):
    from finepref.hosts.llamafactory.webui import make_panels, texts, tokens

    words = ui.engine.change_lang(language)
    for name in (*tokens.ELEMENTS, *make_panels.ELEMENTS):
        button = name == "tokens_btn" or name.endswith(("_page_btn", "_start", "_stop", "_again", "_use"))
        told = {lang: text["value" if button else "label"] for lang, text in texts.table()[name].items()}
        element = words[ui.manager.get_elem_by_id(f"train.{name}")]
        assert (element.value if button else element.label) == told[language]
        assert len({*told.values()}) == len(LANGUAGES) or name == "scoring_oracle"


@pytest.mark.parametrize("stage", STAGES)
def test_the_english_help_is_the_one_of_the_command_line(ui, stage):
    words = ui.engine.change_lang("en")
    for name, option in options_of(stage).items():
        assert words[ui.manager.get_elem_by_id(f"train.{stage}.{name}")].info == option.help


@pytest.mark.parametrize(("stage", "key"), [(stage, key) for stage in STAGES for key in own_keys(stage)])
def test_an_option_that_was_set_is_in_the_command(args, stage, key):
    value = another_value(stage, key)
    command, _ = args(stage, **{f"train.{stage}.{key}": value})
    assert command["stage"] == stage
    sent = {"0.25": 0.25, "4096": 4096}.get(value, value)
    assert (command[key], type(command[key])) == (sent, type(sent))


def test_the_command_has_the_hosts_keys_that_a_stage_reads_and_none_of_another_stage(args):
    weights = {"train.seapo_kto.kto_chosen_weight": 1.5, "train.seapo_kto.kto_rejected_weight": 0.5}
    command, _ = args("seapo_kto", pref_beta=0.2, pref_ftx=0.1, **weights)
    keys = ("pref_beta", "pref_ftx", "kto_chosen_weight", "kto_rejected_weight")
    assert [command[key] for key in keys] == [0.2, 0.1, 1.5, 0.5]
    assert not [key for key in command if key.startswith(("sepo_", "tdpo_", "pref_loss"))]
    command, _ = args("tdpo", pref_beta=0.2, pref_ftx=0.1, **weights)
    assert command["pref_beta"] == 0.2
    assert not [key for key in command if key.startswith(("pref_ftx", "kto_", "seapo_", "sepo_"))]
    command, _ = args("sepo", pref_beta=0.2)
    assert not [key for key in command if key.startswith(("pref_", "kto_", "tdpo_"))]


def test_extra_arguments_win_over_the_form(args):
    command, _ = args("sepo", extra_args='{"sepo_gamma": 7.0}', **{"train.sepo.sepo_gamma": "3"})
    assert command["sepo_gamma"] == 7.0


@pytest.mark.parametrize("stage", STAGES)
def test_no_switch_is_on_by_default_because_the_host_leaves_false_out_of_the_command(stage):
    switches = [option for option in options_of(stage).values() if option.kind is bool]
    assert not [option.name for option in switches if option.default is not False]


@pytest.mark.parametrize("stage", STAGES)
def test_saved_arguments_come_back_into_the_form(ui, args, stage):
    key = own_keys(stage)[-1]
    value = another_value(stage, key)
    _, form = args(stage, dataset=[DATASETS[stage]], **{f"train.{stage}.{key}": value})
    inputs = {element: form[element] for element in form if type(element).__name__ not in ("Plot", "Markdown")}
    ui.runner.save_args(inputs)
    loaded = ui.runner.load_args("en", "saved.yaml")
    assert loaded[ui.manager.get_elem_by_id(f"train.{stage}.{key}")] == value
    assert loaded[ui.manager.get_elem_by_id("train.training_stage")].endswith(f"({stage})")


@pytest.mark.parametrize("stage", STAGES)
def test_a_plain_form_is_accepted_and_nothing_is_loaded(ui, args, stage, monkeypatch):
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda *a, **k: pytest.fail("loaded"))
    _, form = args(stage, dataset=[DATASETS[stage]])
    assert ui.runner._initialize(form, do_train=True, from_preview=True) == ""


@pytest.mark.parametrize(
    ("stage", "values", "message"),
    [
        ("sepo", {"train.sepo.sepo_ratio_chosen": 0}, "`sepo_ratio_chosen` must be above 0 and at most 1, not 0"),
        ("sepo", {"train.sepo.sepo_ratio_rejected": 2}, "`sepo_ratio_rejected` must be above 0 and at most 1, not 2"),
        ("sepo", {"train.sepo.sepo_ratio_chosen": None}, "`sepo_ratio_chosen` must be a number, not None"),
        ("sepo", {"train.sepo.sepo_gamma": "-1"}, "`sepo_gamma` must be above 0, not -1.0"),
        ("sepo", {"train.sepo.sepo_margin": "much"}, "`sepo_margin` must be a number, not 'much'"),
        (
            "sepo",
            {"train.sepo.finepref_batch_tokens": "4k"},
            "`finepref_batch_tokens` must be a whole number, not '4k'",
        ),
        ("sepo", {"extra_args": '{"pref_loss": "ipo"}'}, "`pref_loss` does nothing in stage sepo, so leave it out"),
        ("tdpo", {"pref_beta": -0.1}, "`pref_beta` must be above 0, not -0.1"),
        (
            "tdpo",
            {"train.tdpo.tdpo_variant": "tdpo1", "train.tdpo.tdpo_alpha": "0.5"},
            "`tdpo_alpha` belongs to tdpo2; tdpo1 has none, so leave it out",
        ),
        (
            "apo_rm",
            {"train.apo_rm.apo_pooling": "middle"},
            "`apo_pooling` must be last or eos or mean or max, not 'middle'",
        ),
        ("seapo_kto", {"train.seapo_kto.seapo_error_types": ""}, "`seapo_error_types` has an empty name: ''"),
        ("seapo_kto", {"train.seapo_kto.kto_chosen_weight": 0}, "`kto_chosen_weight` must be above 0, not 0"),
        (
            "seapo_kto",
            {"dataset": ["spans"]},
            "stage seapo_kto trains on negatives or feedback, this dataset is span_pair",
        ),
        ("DPO", {"dataset": ["spans"]}, None),
        ("tdpo", {"dataset": ["nowhere"]}, "Undefined dataset nowhere in dataset_info.json."),
    ],
)
def test_a_bad_value_is_one_clear_line_in_the_form(ui, args, stage, values, message):
    _, form = args(stage, **({"dataset": [DATASETS.get(stage)]} | values))
    error = ui.runner._initialize(form, do_train=True, from_preview=True)
    if message is None:  # the host's own stages are checked by the host alone
        assert error == ""
    else:
        assert message in error
        assert len(error.splitlines()) == 1 + ("FP" in error)  # data problems end in a line with their number


def test_the_cause_of_a_failed_run_stands_above_its_traceback():
    from finepref.formats.problems import BadData, Problem
    from finepref.hosts.llamafactory.webui.runner import with_cause

    error = BadData([Problem("a.jsonl", 3, "rejected_spans", "FP210", "tdpo_masks: annotated needs spans")])
    raised = f"Traceback (most recent call last):\n  File 'x', line 1\nfinepref.formats.problems.BadData: {error}"
    shown = with_cause(f"Failed. Exit code: 1\n\n```\nloading\n{raised}\n\n```\n", "en")
    assert shown.splitlines()[2] == "FP210 a.jsonl:3 rejected_spans: tdpo_masks: annotated needs spans"
    assert raised in shown
    assert with_cause("Finished.\n\nValueError: no", "en") == "Finished.\n\nValueError: no"


def offered(ui, folder, label="Supervised Fine-Tuning"):
    from llamafactory.webui.control import list_datasets

    return {name for name, _ in list_datasets(str(folder), label).choices}


def test_only_data_sets_whose_format_fits_are_offered(ui, tmp_path):
    folder = write_rows(tmp_path, rows(2), "sums")
    for name, formatting in (("spans", "span_pair"), ("scores", "scored_pair"), ("labels", "feedback")):
        write_rows(folder, [], name, formatting=formatting)
    write_rows(folder, [], "hosts", formatting="alpaca")
    write_rows(folder, [], "ranking", formatting="sharegpt", ranking=True)
    shipped = {"seapo_demo", "sepo_demo", "cdpo_demo", "tdpo_demo", "granular_demo"}
    assert offered(ui, folder, "SeaPO (seapo_kto)") - shipped == {"sums", "labels"}
    assert offered(ui, folder, "SePO (sepo)") - shipped == {"spans", "scores", "ranking"}
    assert offered(ui, folder, "TDPO (tdpo)") - shipped == {"spans", "ranking"}
    assert offered(ui, folder) == {"hosts"}
    assert offered(ui, folder, "DPO") == {"ranking"}
    assert offered(ui, folder, "SePO (sepo)") & shipped == {"sepo_demo", "cdpo_demo", "tdpo_demo", "granular_demo"}
    assert offered(ui, tmp_path / "no folder", "TDPO (tdpo)") == {"tdpo_demo", "granular_demo"}


def test_a_shipped_data_set_has_a_preview_and_so_has_the_users_own(ui, sums):
    from llamafactory.webui.components.data import can_preview, get_preview

    for name, rows_in_file in (("spans", 12), ("tdpo_demo", 40)):
        assert can_preview(str(sums), [name]).interactive
        count, shown, _ = get_preview(str(sums), [name], 0)
        assert count == rows_in_file
        assert "rejected" in shown[0]


@pytest.mark.parametrize("label", ["Supervised Fine-Tuning", "DPO", *STAGES])
def test_only_the_chosen_stages_accordion_is_visible(ui, label):
    from finepref.hosts.llamafactory.webui import forms, train_tab

    label = forms.label_of(stages.find(label)) if label in STAGES else label
    *accordions, scoring, inject, tokens, _ = train_tab.show_stage(label)
    visible = [name for name, update in zip(stages.all_stages(), accordions, strict=True) if update.visible]
    assert visible == [name for name in STAGES if f"({name})" in label]
    assert tokens.visible == (visible in [[name] for name in STAGES if stages.find(name).shape == "pair"])
    row = stages.find(visible[0]) if visible else None
    assert scoring.visible == (row is not None and "scored_pair" in row.formats)
    assert inject.visible == (
        row is not None and bool({"negatives", "feedback", "pair", "span_pair"} & {*row.formats})
    )
