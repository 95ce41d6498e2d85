"""What `finepref view` and `finepref tokens` have in common: the stage's options, the records, pages and pictures."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from finepref.commands.forecast import stage_and_options, tokeniser_of
from finepref.formats.files import replacing

if TYPE_CHECKING:
    from finepref.hosts.forecast import Tokeniser
    from finepref.hosts.stage_view import StageView
    from finepref.hosts.token_view import Entry
    from finepref.synth.data_sources.inputs import Input

NEEDS = 'tokens need "finepref[model]"; a template by name needs LLaMA-Factory'
NOTHING_CUT = 2**31

Options = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Options of the stage, as in the YAML of the run."),
]
StageName = Annotated[str, typer.Option("--stage", help="The stage that would train on the records.")]
Model = Annotated[str, typer.Option("--model", help="Folder or name of the model; only its tokenizer is loaded.")]
Seed = Annotated[int, typer.Option("--seed", help="Of the run, for random selections.")]
First = Annotated[int, typer.Option("--record", min=1, help="Number of the first record, counted from 1.")]
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


class Asked(NamedTuple):
    """The stage and what makes its tokens, as the user names them."""

    stage: str
    options: Sequence[str]
    model: str
    template: str
    cutoff_len: int
    seed: int

    def view(self) -> StageView | None:
        """What weighs the tokens of records; None if there is no stage.

        Raises:
            ValueError: options without a stage or a model, or values that the stage does not have.
        """
        if not self.stage:
            if self.options:
                raise ValueError(f"{self.options[0]} is an option of a stage: give --stage")
            return None
        if not self.model and (self.template or self.cutoff_len):
            raise ValueError("--template and --cutoff-len are about tokens: give --model too")
        from finepref.hosts.stage_view import StageView

        stage, options = stage_and_options(self.stage, self.options, None, flag="")
        return StageView(stage, options, self.tokeniser() if self.model else None, self.seed)

    def tokeniser(self) -> Tokeniser:
        """What makes the tokens; nothing is cut without --cutoff-len.

        Raises:
            ValueError, OSError: the model has no tokenizer with a chat template, or is not there.
        """
        from finepref.hosts.missing_model import missing_model_hint

        if hint := missing_model_hint(self.model):
            raise FileNotFoundError(hint)
        return tokeniser_of(self.model, self.template, self.cutoff_len or NOTHING_CUT)

    def about(self) -> list[str]:
        """Lines about it, for a page."""
        if not self.stage:
            return []
        template = f", {self.template or 'chat template'}" if self.model else ", by characters"
        model = f", {Path(self.model).name}" if self.model else ""
        cut = f", cutoff_len {self.cutoff_len}" if self.cutoff_len else ""
        return [" ".join([f"stage {self.stage}", *self.options]) + model + template + cut]


class Shown(NamedTuple):
    """Entries from some record on, and whether more follow."""

    entries: list[Entry]
    more: bool


def entries_of(inputs: Sequence[Input], view: StageView | None, first: int, count: int) -> Shown:
    """Some records of files, by a stage or as the data has them.

    Raises:
        BadData: FP201, the stage does not train on a format; or a file cannot be read.
    """
    from finepref.hosts.view_sources import entries_of_data, sources_of

    if view is None:
        return some(islice(entries_of_data(inputs), first - 1, None), count)
    from finepref.hosts.stage_view import looked_at

    sources = sources_of(inputs, view.stage.formats, f"stage {view.stage.name}")
    return some(looked_at(islice(sources, first - 1, None), view), count)


def some(entries: Iterable[Entry], count: int) -> Shown:
    """The first entries, and whether there are more."""
    left = iter(entries)
    found = [*islice(left, count)]
    return Shown(found, len(found) == count and next(left, None) is not None)


def write_page(output: Path, text: str) -> None:
    """Write a page, atomically. A text that is no valid Unicode is written with marks for what is not."""
    with replacing(output) as file:
        file.write(text.encode(errors="replace"))


def write_picture(output: Path, text: str, *, dark: bool, width: int, share: int | None) -> None:
    """Write a page with one record as a PNG, by a headless Chromium.

    Args:
        output: the PNG.
        text: the page.
        dark: on a dark ground.
        width: of the picture, in CSS pixels; it has twice as many pixels.
        share: of the tokens that are marked as selected, in percent; None: the page's default.

    Raises:
        FileNotFoundError: there is no Chromium.
        ValueError: it did not make a picture.
    """
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        names = ", ".join(BROWSERS)
        raise FileNotFoundError(f"a picture needs one of {names} on the PATH, which is not there")
    with tempfile.TemporaryDirectory() as folder:
        page, picture = Path(folder, "page.html"), Path(folder, "page.png")
        write_page(page, text)
        marks = "#print" + f"&theme={'dark' if dark else 'light'}" + (f"&k={share}" if share else "")
        address = page.as_uri() + marks

        def run(height: int, *flags: str) -> str:
            sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
            command = [browser, "--headless=new", *sandbox, "--disable-gpu", "--hide-scrollbars", "--no-first-run"]
            command += ["--disable-dev-shm-usage", "--disable-background-networking", "--force-device-scale-factor=2"]
            command += [f"--user-data-dir={folder}/profile", f"--window-size={width},{height}", *flags, address]
            done = subprocess.run(command, capture_output=True, text=True, timeout=120)
            return done.stdout

        found = re.search(r'data-height="(\d+)"', run(600, "--dump-dom"))
        if found is None:
            raise ValueError(f"{browser} could not lay out the page")
        # headless windows have a bar of about 90 pixels, which a picture does not show
        run(int(found[1]) + 90, f"--screenshot={picture}")
        if not picture.is_file():
            raise ValueError(f"{browser} made no picture")
        with replacing(output) as file:
            file.write(_cropped(picture, 2 * int(found[1])))


def _cropped(picture: Path, height: int) -> bytes:
    """The upper part of a picture, if Pillow is there to cut it."""
    try:
        from PIL import Image
    except ModuleNotFoundError:
        return picture.read_bytes()
    from io import BytesIO

    with Image.open(picture) as image:
        made = BytesIO()
        image.crop((0, 0, image.width, min(height, image.height))).quantize(256).save(made, "PNG", optimize=True)
        return made.getvalue()


def first_and_last(first: int, shown: Shown, name: str, flag: str) -> Iterator[str]:
    """What of the input is shown, if that is not all of it."""
    if shown.more or first > 1:
        last = first + len(shown.entries) - 1
        rest = f"; more follow: --record {last + 1}, or a larger {flag}" if shown.more else ""
        yield f"records {first} to {last} of {name}{rest}"
