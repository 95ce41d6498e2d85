"""The page of `finepref annotate` in headless Chromium: by keys alone, by the mouse, and after a kill.

What the browser showed is kept in build/annotate.
"""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import webui_browser
from annotating import annotator
from conftest import ROOT
from finepref.formats.jsonl import write_jsonl
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

PICTURES = ROOT / "build" / "annotate"
EVIL = "</script><script>window.ran = 1</script><img src=x onerror='window.ran = 1'>"
CHOSEN = "It is Paris. \U0001f999 The city lies on the Seine."
REJECTED = "It is Lyon.\r\nIt has e\u0301clairs \U0001f999\U0001f999 too."
ROWS = [
    {"id": "paris", "prompt": "What is the capital of France?", "chosen": CHOSEN, "rejected": REJECTED},
    {"id": "sum", "prompt": EVIL, "chosen": "17 + 25 = 42.", "rejected": "17 + 25 = 43."},
    {"id": "moon", "prompt": "How far is the moon?", "chosen": "About 384,000 km.", "rejected": "About 150 km."},
]


def spans_in(file):
    """id -> the marked texts of both responses, with kind by side and weight, as Python cuts them out."""
    found = {}
    for row in map(json.loads, file.read_text(encoding="utf-8").splitlines()):
        found[row["id"]] = {
            side: [(row[side][each["start"] : each["end"]], each.get("weight", 1)) for each in row[f"{side}_spans"]]
            for side in ("chosen", "rejected")
            if f"{side}_spans" in row
        }
    return found


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with webui_browser.chromium(tmp_path_factory.mktemp("chromium")) as page:
        page.driver.set_window_size(1400, 900)
        yield page


@pytest.fixture
def annotate(browser, tmp_path, request):
    """The command on a file of rows, its page in the browser, and what a user does with it."""
    driver, run = browser.driver, browser.driver.execute_script
    write_jsonl(tmp_path / "rows.jsonl", ROWS)

    def start():
        command = started.enter_context(annotator(tmp_path, "rows.jsonl", "--output", "marks.jsonl"))
        driver.get(f"{command.url}#theme=light")
        return command

    def press(*keys):
        """Keys for what has the focus, which a saved step draws anew; after Shift or Ctrl, together with it."""
        for key in keys:
            held = key[0] if key[0] in (Keys.SHIFT, Keys.CONTROL) else ""
            actions = ActionChains(driver)
            if held:
                actions.key_down(held).send_keys(key[1:]).key_up(held)
            else:
                actions.send_keys(key)
            actions.perform()

    def texts(css):
        return [element.text for element in driver.find_elements(By.CSS_SELECTOR, css)]

    def saved(text):
        """Wait until the page tells what is on the disk."""
        webui_browser.until(lambda: text in texts("#status")[0], f"{text!r}, not {texts('#status')}", seconds=30)

    def selected():
        return run("return textOfPart(response(), ...chosen())")

    from contextlib import ExitStack

    with ExitStack() as started:
        made = SimpleNamespace(start=start, press=press, texts=texts, saved=saved, selected=selected, run=run)
        yield SimpleNamespace(
            **vars(made), title=lambda: texts("h2")[0], output=tmp_path / "marks.jsonl", driver=driver
        )
        browser.picture(PICTURES / f"{request.node.name}.png")


def test_a_set_is_annotated_by_keys_alone_and_trains_at_once(annotate, run, tmp_path):
    command, press = annotate.start(), annotate.press
    assert annotate.title() == "paris"
    press("l", "l", "L")
    assert annotate.selected() == "Paris"
    press("g")
    annotate.saved('Good, weight 1: "Paris", saved.')
    press(Keys.TAB, "l", "l", "L", "w", "0.5" + Keys.ENTER, "b")
    annotate.saved('Bad, weight 0.5: "Lyon", saved.')
    press(Keys.ENTER)
    webui_browser.until(lambda: annotate.title() == "sum", "the next record", seconds=30)
    press(Keys.TAB, Keys.END, Keys.ARROW_LEFT, "H", "w", "1" + Keys.ENTER, "b")
    annotate.saved('Bad, weight 1: "43", saved.')
    press(Keys.SHIFT + Keys.TAB, "L", "b")
    annotate.saved('Bad, weight 1: "17", saved.')
    press("n")
    assert annotate.title() == "moon"
    press(Keys.ENTER)
    annotate.saved("Every record is annotated.")
    assert annotate.texts("#told") == ["3 of 3 annotated"]
    told = command.end()
    assert "marks.jsonl: 2 span pairs" in told
    assert spans_in(annotate.output) == {
        "paris": {"chosen": [("Paris", 1)], "rejected": [("Lyon", 0.5)]},
        "sum": {"chosen": [(" + 25 = 42.", 1)], "rejected": [("43", 1)]},  # all but what is bad
    }
    (row,) = map(json.loads, annotate.output.with_suffix(".unmarked.jsonl").read_text().splitlines())
    assert row == ROWS[2]
    entry = {"file_name": annotate.output.name, "formatting": "span_pair"}
    (tmp_path / "dataset_info.json").write_text(json.dumps({"annotated": entry}))
    done = run(name="tdpo_spans", dataset="annotated", dataset_dir=str(tmp_path), tdpo_sides="two", max_steps=2)
    tokens = done.receipt["tokens"]
    assert done.receipt["rows"]["in_training_set"] == 2
    assert 0 < tokens["rejected_selected"] < tokens["rejected_responses"]
    assert 0 < tokens["chosen_selected"] < tokens["chosen_responses"]
    assert [entry["step"] for entry in done.log if "loss" in entry] == [1, 2]


def test_what_the_page_shows_is_there_after_a_kill_and_can_still_be_undone(annotate):
    command, press = annotate.start(), annotate.press
    press("L", "g")
    annotate.saved('Good, weight 1: "It"')
    press(Keys.TAB, Keys.CONTROL + "a", "b")
    annotate.saved("Bad, weight 1")
    command.kill()
    press(Keys.CONTROL + Keys.HOME, "L", "g")
    webui_browser.until(lambda: annotate.texts("#trouble")[0].startswith("Not saved"), "the warning", seconds=30)
    assert annotate.texts(".body .up") == ["It"]  # what is not on the disk is not shown
    annotate.start()
    assert annotate.title() == "sum"  # the first that waits
    press("k")
    assert annotate.texts(".body .up") == ["It"]
    assert annotate.run("return document.querySelector('.body .down').textContent") == REJECTED
    press("u")
    annotate.saved("Undone.")
    press("u")
    webui_browser.until(lambda: annotate.texts("#told") == ["0 of 3 annotated"], "the second undo", seconds=30)
    press("u")
    annotate.saved("There is nothing to undo.")


def drag(annotate, side, start, end, to=None):
    """Select from a character of a response to one of the same, or of another response, with the mouse."""
    script = """
        return arguments[0].map(([side, place]) => {
            const element = document.querySelectorAll(".body")[side], range = document.createRange();
            range.setStart(...placeOf(element, place));
            range.setEnd(...placeOf(element, place + 1));
            const box = range.getBoundingClientRect();
            return [box.left + 1, box.top + box.height / 2];
        });
    """
    ends = annotate.run(script, [[side, start], [side if to is None else to, end]])
    actions = ActionChains(annotate.driver)
    mouse = actions.w3c_actions.pointer_action
    mouse.move_to_location(*map(round, ends[0]))
    mouse.pointer_down()
    mouse.move_to_location(*map(round, ends[1]))
    mouse.pointer_up()
    actions.perform()


def click(annotate, text):
    annotate.driver.find_element(By.XPATH, f"//button[starts-with(normalize-space(), '{text}')]").click()


def test_the_mouse_marks_on_either_response_and_takes_a_mark_off(annotate):
    command = annotate.start()
    llama = CHOSEN.index("\U0001f999")
    drag(annotate, 1, REJECTED.index("Lyon"), REJECTED.index("."))
    assert annotate.selected() == "Lyon"
    click(annotate, "Bad")
    annotate.saved('Bad, weight 1: "Lyon"')
    drag(annotate, 0, llama, llama + 5)
    assert annotate.selected() == "\U0001f999 The"
    click(annotate, "Good")
    annotate.saved('Good, weight 1: "\U0001f999 The"')
    drag(annotate, 0, llama + 2, llama + 5)
    click(annotate, "Remove")
    annotate.saved('Removed: "The"')
    command.end()
    assert spans_in(annotate.output) == {"paris": {"chosen": [("\U0001f999 ", 1)], "rejected": [("Lyon", 1)]}}


def test_a_selection_that_leaves_a_response_ends_with_it(annotate):
    annotate.start()
    drag(annotate, 0, CHOSEN.index("Seine"), REJECTED.index("Lyon"), to=1)
    inside = (
        "const s = getSelection(); return [state.side, body().contains(s.anchorNode), body().contains(s.focusNode)]"
    )
    assert annotate.run(inside) == [0, True, True]
    assert annotate.selected() == "Seine."
    drag(annotate, 1, REJECTED.index("."), CHOSEN.index("Seine"), to=0)
    assert annotate.run(inside) == [1, True, True]
    assert annotate.selected() == "It is Lyon"


def test_characters_are_those_of_python_at_every_place_of_a_response(annotate):
    """Astral characters, CRLF and a combining mark; between the characters of the page, and back."""
    annotate.start()
    script = """
        const element = document.querySelectorAll(".body")[arguments[0]], last = startsOf(element.textContent).length;
        return [...Array(last).keys()].map(place => {
            select(0, place, arguments[0]);
            return [state.head, textOfPart(response(), 0, place)];
        });
    """
    for side, text in enumerate((CHOSEN, REJECTED)):
        assert annotate.run(script, side) == [[place, text[:place]] for place in range(len(text) + 1)]
    # an arrow goes over what one sees as one character
    annotate.press(Keys.CONTROL + Keys.HOME)
    places = []
    for _ in range(40):
        places.append(annotate.run("return state.head"))
        annotate.press(Keys.ARROW_RIGHT)
    inside = {REJECTED.index("\n"), REJECTED.index("\u0301")}
    assert sorted({*places}) == [place for place in range(len(REJECTED) + 1) if place not in inside][:40]


def test_who_is_faster_than_the_disk_keeps_selection_and_record(annotate):
    """Answers that come when the test lets them."""
    annotate.start()
    annotate.run("""
        const real = window.fetch;
        window.waiting = [];
        window.fetch = (...asked) => new Promise(go => waiting.push(() => go(real(...asked))));
        window.answer = () => waiting.shift()();
    """)
    annotate.press("L", "g", "l", "L")
    assert annotate.selected() == "is"
    annotate.run("answer()")
    annotate.saved('Good, weight 1: "It"')
    assert annotate.selected() == "is"
    annotate.press(Keys.ENTER, "j", "j")
    webui_browser.until(lambda: annotate.run("return waiting.length"), "the request", seconds=30)
    annotate.run("answer()")
    webui_browser.until(lambda: annotate.run("return records[0].done"), "the answer", seconds=30)
    assert annotate.title() == "moon"


def test_a_text_is_never_code_and_only_the_annotator_is_asked(annotate):
    annotate.start()
    annotate.press("j")
    assert annotate.texts(".turn span") == [EVIL]
    assert annotate.run("return window.ran") is None
    script = """
        return new Promise(done => {
            document.addEventListener("securitypolicyviolation", event => done(event.effectiveDirective));
            fetch("http://127.0.0.1:1/").catch(() => 0);
        });
    """
    assert annotate.run(script) == "connect-src"
    script = "const e = document.createElement('script'); e.textContent = 'window.ran = 2'; document.body.append(e)"
    assert annotate.run(f"{script}; return window.ran") is None


def test_keys_are_shown_records_found_and_the_theme_changed(annotate):
    annotate.start()
    annotate.press("L", "b")
    annotate.saved("Bad")
    annotate.press("j", Keys.ENTER)
    webui_browser.until(lambda: annotate.title() == "moon", "the next record", seconds=30)
    found = {}
    for kind in ("open", "marked", "none", ""):
        script = "const e = $('kind'); e.value = arguments[0]; e.dispatchEvent(new Event('input')); return state.shown"
        found[kind] = [record["id"] for record in annotate.run(script, kind)]
    assert found == {"open": ["moon"], "marked": ["paris"], "none": ["sum"], "": ["paris", "sum", "moon"]}
    assert {"h", "l", "H", "L", "Tab"} <= {*annotate.texts("#keys kbd")}
    annotate.press("?")
    assert "the selection, or the mark at the caret, is good" in annotate.texts("dialog")[0]
    annotate.press("?", "/", "384")
    assert annotate.texts("#count") == ["1 of 3 records"]
    assert annotate.title() == "moon"
    annotate.press(Keys.ESCAPE, "t")
    assert annotate.run("return getComputedStyle(document.body).backgroundColor") == "rgb(21, 24, 28)"


def test_a_mark_is_found_changed_and_weighed_without_selecting_it_again(annotate):
    command, press = annotate.start(), annotate.press
    press("s", "b")
    annotate.saved('Bad, weight 1: "It is Paris."')
    press(Keys.HOME, "m")
    assert annotate.selected() == "It is Paris."
    press("g")
    annotate.saved("Good")
    press("w", "2" + Keys.ENTER)
    annotate.saved("Good, weight 2")
    command.end()
    assert spans_in(annotate.output) == {"paris": {"chosen": [("It is Paris.", 2)]}}
