"""The page of `finepref view` in headless Chromium: selection, keys, filters, and texts that would like to be code.

What the browser showed is kept in build/view.
"""

from __future__ import annotations

import random
import struct
from types import SimpleNamespace

import pytest
import webui_browser
from conftest import ROOT
from finepref.cli import app
from finepref.formats.jsonl import write_jsonl
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from typer.testing import CliRunner

PICTURES = ROOT / "build" / "view"
EVIL = "</script><script>window.ran = 1</script><img src=x onerror='window.ran = 1'><b>bold</b>"
RECORDS = 5000


def scored_rows():
    """Pairs of five tokens a side; record i has the id r0000i, and those of odd number a longer chosen response."""
    draw = random.Random(0)
    for i in range(RECORDS):
        texts = {"chosen": f"good {i} word" + " more" * (i % 2), "rejected": f"bad {i} word"}
        row = {"id": f"r{i:05}", "prompt": f"Question {i}?", "tokenizer": "words", **texts}
        for side, text in texts.items():
            ends = [at for at, char in enumerate(text) if char == " "] + [len(text)]
            row[f"{side}_offsets"] = [[0 if n == 0 else ends[n - 1], end] for n, end in enumerate(ends)]
            row[f"{side}_scores"] = [round(draw.gauss(0, 1), 6) for _ in ends]
        yield row


OTHERS = [
    {"id": "fact", "prompt": "?", "chosen": "good", "negatives": {"fact": "bad one"}, "spans": {"fact": [[4, 7]]}},
    {"id": "logic", "prompt": EVIL, "chosen": EVIL, "negatives": {"logic": "🦙 bad"}, "spans": {"logic": [[0, 1]]}},
    {"id": "wrong", "prompt": "?", "chosen": "the same", "negatives": {"logic": "the same"}},
]


@pytest.fixture(scope="module")
def web(tmp_path_factory):
    """One browser, and the pages of two files."""
    folder = tmp_path_factory.mktemp("view")
    for name, rows in (("scored", list(scored_rows())), ("others", OTHERS)):
        write_jsonl(folder / f"{name}.jsonl", rows)
        words = ["view", f"{folder}/{name}.jsonl", "--output", f"{folder}/{name}.html", "--count", str(RECORDS)]
        outcome = CliRunner().invoke(app, words)
        assert outcome.exit_code == 0, outcome.output
    with webui_browser.chromium(tmp_path_factory.mktemp("chromium")) as page:
        page.driver.set_window_size(1400, 900)
        yield SimpleNamespace(folder=folder, driver=page.driver, page=page)


@pytest.fixture
def view(web, request):
    """A page, opened anew by name, and what a user does with it."""
    driver = web.driver

    def open_page(name, marks="theme=light"):
        driver.get("about:blank")  # a new mark alone would not load the page again
        driver.get(f"{(web.folder / name).as_uri()}.html#{marks}")

    def press(*keys):
        for key in keys:
            driver.switch_to.active_element.send_keys(key)

    def texts(css):
        return [element.text for element in driver.find_elements(By.CSS_SELECTOR, css)]

    def fill(name, value):
        script = "const e = document.getElementById(arguments[0]); e.value = arguments[1];"
        driver.execute_script(f"{script} e.dispatchEvent(new Event('input'))", name, str(value))

    run = driver.execute_script
    yield SimpleNamespace(open=open_page, press=press, texts=texts, fill=fill, run=run, title=lambda: texts("h2")[0])
    web.page.picture(PICTURES / f"{request.node.name}.png")


def test_the_page_selects_the_tokens_that_training_selects(view):
    """Random scores with ties and gaps, every share and both ends, beside `losses.sepo.select_tokens`."""
    import torch
    from finepref.losses.sepo import select_tokens

    draw = random.Random(1)
    cases, expected = [], []
    for number in range(600):
        digits = draw.choice((0, 1, 6))
        scores = [round(draw.gauss(0, draw.choice((0.1, 1, 30))), digits) for _ in range(draw.randint(1, 40))]
        known = [draw.random() < 0.9 for _ in scores]
        share, highest = (number % 100 + 1) / 100, draw.random() < 0.5
        rewards = torch.tensor(scores, dtype=torch.float32).double()
        expected.append(select_tokens(rewards, share, highest=highest, mask=torch.tensor(known)).tolist())
        cases.append([[s if k else None for s, k in zip(scores, known, strict=True)], share, highest])
    view.open("others")
    assert view.run("return arguments[0].map(each => select(...each))", cases) == expected


def test_the_slider_marks_the_share_in_both_responses(view, web):
    view.open("scored")
    row = next(iter(scored_rows()))
    assert view.texts(".side h3") == ["chosen", "rejected"]
    for share, count in ((30, 1), (70, 2), (100, 3)):  # int(.3 * 3) is 0, and at least one is taken
        view.fill("k", share)
        assert view.texts(".side .soft") == [f"{count} of 3 tokens selected"] * 2
        sides = web.driver.find_elements(By.CSS_SELECTOR, ".side")
        for side, element in zip(("chosen", "rejected"), sides, strict=True):
            marked = [each.text for each in element.find_elements(By.CSS_SELECTOR, ".picked")]
            order = sorted(range(3), key=lambda i: row[f"{side}_scores"][i] * (-1 if side == "chosen" else 1))
            words = [row[side][slice(*row[f"{side}_offsets"][i])].strip() for i in sorted(order[:count])]
            assert [each.strip() for each in marked] == words


def test_the_sign_of_a_reward_is_shown_by_colour_and_by_the_line_below(view, web):
    view.open("scored")
    for sign, kind, line in ((1, "up", "solid"), (-1, "down", "dashed")):
        found = web.driver.find_elements(By.CSS_SELECTOR, f".body .{kind}")
        assert found
        for element in found:
            side, i = view.run("return [arguments[0].piece.response.values.reward, arguments[0].piece.i]", element)
            assert side[i] * sign > 0
            assert element.value_of_css_property("border-bottom-style") == line


def test_keys_go_through_the_records_and_search_them(view):
    view.open("scored")
    assert view.title() == "r00000"
    view.press("j", "j", Keys.ARROW_DOWN, "k")
    assert view.title() == "r00002"
    view.press("G")
    assert view.title() == f"r{RECORDS - 1:05}"
    view.press("g", "k")
    assert view.title() == "r00000"
    view.press("/", "Question 4321?")
    assert view.texts("#count") == [f"1 of {RECORDS} records"]
    assert view.title() == "r04321"
    view.press("j", Keys.ESCAPE)  # in the search a j is a j
    assert view.texts("#count") == [f"0 of {RECORDS} records"]
    assert view.texts("main p") == ["No record fits the filters."]


def test_keys_change_colour_share_and_theme_and_list_themselves(view):
    view.open("scored")
    view.press("]", "]", "[")
    assert view.texts("#kout") == ["31 %"]
    view.press("t")
    assert view.run("return getComputedStyle(document.body).backgroundColor") == "rgb(21, 24, 28)"
    view.press("t")
    assert view.run("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    view.press("c")
    assert view.run("return [state.colour, document.querySelectorAll('.body .up').length]") == ["", 0]
    view.press("c")
    assert view.run("return state.colour") == "reward"
    view.press("?")
    assert "next, previous record (also the arrow keys)" in view.texts("dialog")[0]
    view.press("?")
    assert view.run("return document.getElementById('help').open") is False


def test_records_are_filtered_and_sorted_by_length_share_and_id(view):
    rows = list(scored_rows())
    view.open("scored")
    view.fill("lmin", 4)
    assert view.texts("#count") == [f"{RECORDS // 2} of {RECORDS} records"]
    assert view.title() == "r00001"
    view.fill("lmin", "")
    view.fill("smin", 90)
    scores = [[*row["chosen_scores"], *row["rejected_scores"]] for row in rows]
    shares = [sum(score > 0 for score in each) / len(each) for each in scores]
    assert view.texts("#count") == [f"{sum(share >= 0.9 for share in shares)} of {RECORDS} records"]
    view.fill("smin", "")
    view.fill("sort", "share")
    assert view.run("return state.shown.slice(0, 50).map(r => r.id)") == [
        f"r{i:05}" for i in sorted(range(RECORDS), key=lambda i: shares[i])[:50]
    ]
    view.run("document.getElementById('turn').click()")
    view.fill("sort", "id")
    assert view.run("return state.shown.slice(0, 2).map(r => r.id)") == [f"r{RECORDS - 1:05}", f"r{RECORDS - 2:05}"]


def test_the_list_has_few_elements_however_long_it_is(view):
    view.open("scored")
    assert 5 < len(view.texts(".row")) < 40
    view.run("document.getElementById('list').scrollTop = 1e9")
    webui_browser.until(lambda: view.texts(".row .name")[-1] == f"r{RECORDS - 1:05}", "the last row", seconds=10)
    assert len(view.texts(".row")) < 40


def test_a_text_is_never_code_and_nothing_is_asked_of_the_net(view, web):
    view.open("others")
    view.press("j")
    assert view.title() == "logic"
    assert view.texts(".turn span") == [EVIL]
    assert view.texts(".body")[0] == EVIL
    assert view.run("return window.ran") is None
    assert web.driver.find_elements(By.CSS_SELECTOR, "main img, main script, main b:not(.turn > b)") == []
    assert view.run("return performance.getEntriesByType('resource').length") == 0
    script = "const e = document.createElement('script'); e.textContent = 'window.ran = 2'; document.body.append(e)"
    assert view.run(f"{script}; return window.ran") is None  # the policy forbids scripts that are not the page's


def test_error_types_problems_and_spans_are_found(view):
    view.open("others")
    assert view.run("return [...document.getElementById('kind').options].map(o => o.textContent)") == [
        "any",
        "fact",
        "logic",
        "⚠ with a problem",
    ]
    view.fill("kind", "=logic")
    assert (view.texts("#count"), view.title()) == (["1 of 3 records"], "logic")
    assert view.texts(".body .up") == ["🦙"]
    assert "1 of 5 characters (20 %)" in view.texts(".side .soft")
    view.fill("kind", "!problem")
    assert (view.texts("#count"), view.title()) == (["1 of 3 records"], "wrong")
    assert view.texts(".problem")[0].startswith("⚠ FP032 negatives.logic: ")


def test_a_picture_has_one_record_and_its_size(web, tmp_path):
    words = [
        "view",
        str(web.folder / "scored.jsonl"),
        "--png",
        str(tmp_path / "a.png"),
        "--width",
        "700",
        "--record",
        "3",
    ]
    outcome = CliRunner().invoke(app, words)
    assert outcome.exit_code == 0, outcome.output
    assert "record 3, r00002" in outcome.output
    head = (tmp_path / "a.png").read_bytes()[:24]
    width, height = struct.unpack(">II", head[16:24])
    assert head[:4] == b"\x89PNG"
    assert width == 1400
    assert 200 < height < 1200
