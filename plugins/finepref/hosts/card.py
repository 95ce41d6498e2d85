"""finepref's section of a model card: the stage, its options, and what happened to the rows of the data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

FILE_NAME = "README.md"
HEADING = "## Stage `"
WORDS = {
    "read": "in the files",
    "in_training_set": "in the training set",
    "in_evaluation_set": "in the evaluation sets",
    "repeated": "more than once in a set",
}


def append(folder: Path, run: Any) -> None:
    """Append the section to the card in a folder, in place of an earlier one; a missing card is made."""
    add(folder / FILE_NAME, section(run))


def write(folder: Path, run: Any, *, seed: int) -> None:
    """Write a whole card, for a host that makes none: what was trained on what, how, and the section."""
    text = f"{head(folder.name, run, seed=seed)}\n{section(run)}"
    (folder / FILE_NAME).write_text(text, encoding="utf-8")


def head(name: str, run: Any, *, seed: int) -> str:
    """The metadata of a run's card, and how it was trained."""
    setup = run.setup
    model, lora = setup.model["path"], setup.finetuning["type"] == "lora"
    lines = ["---", f"library_name: {'peft' if lora else 'transformers'}"]
    if not Path(model).exists():  # a name on the hub
        lines.append(f"base_model: {model}")
    lines += ["tags:", f"- {setup.host}", "- finepref", "- lora" if lora else "- full", "---", "", f"# {name}", ""]
    lines += [f"{model}, trained on {', '.join(setup.datasets)}.", "", "## Training", ""]
    values = {**setup.optimizer, "batch": setup.batch["total"], "epochs": setup.epochs, "seed": seed}
    values |= {"precision": setup.precision, "cutoff_len": setup.cutoff_len, "steps": run.planned}
    values |= {f"lora_{key}": setup.finetuning[key] for key in ("rank", "alpha", "dropout") if lora}
    lines += [f"- `{key}`: {value}" for key, value in values.items() if value is not None]
    return "\n".join(lines) + "\n"


def with_section(create: Callable[..., None], folder: Path, run: Any) -> Callable[..., None]:
    """A function that makes the host's card in a folder and appends the section, before the folder is uploaded."""

    def create_model_card(*arguments: Any, **options: Any) -> None:
        create(*arguments, **options)
        append(folder, run)

    return create_model_card


def add(card: Path, text: str) -> None:
    """Append a section to a card, in place of an earlier one."""
    there = card.read_text(encoding="utf-8") if card.is_file() else ""
    before = there.partition(f"\n{HEADING}")[0].rstrip("\n")
    card.write_text(f"{before}\n\n{text}" if before else text, encoding="utf-8")


def section(run: Any) -> str:
    """The section of a run (`finepref.hosts.run.Run`)."""
    row = run.stage
    options = "\n".join(f"- `{key}`: {value}" for key, value in run.settings.items())
    lines = [f"{HEADING}{row.name}`", "", f"{row.title} ({row.paper}), trained with finepref.", "", options, ""]
    lines += ["| rows | |", "|---|---:|", *(f"| {name} | {count} |" for name, count in counts(run.rows.content()))]
    return "\n".join(lines) + "\n"


def section_of(card: Path) -> str:
    """The section in a card, "" if there is none."""
    if not card.is_file():
        return ""
    _, heading, rest = ("\n" + card.read_text(encoding="utf-8")).partition(f"\n{HEADING}")
    return f"{HEADING}{rest}" if heading else ""


def counts(rows: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    """(name, number of rows) of each entry of a receipt's `rows`, with a line for each reason."""
    for key, value in rows.items():
        if isinstance(value, Mapping):
            yield from ((f"{key}: {reason}", count) for reason, count in value.items())
        elif value is not None and (value or key != "repeated"):
            yield WORDS.get(key, key), value
