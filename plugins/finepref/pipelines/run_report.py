"""The report on several runs: Markdown, HTML with its pictures inside, CSV, JSON and plots."""

from __future__ import annotations

import base64
import csv
import html
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from finepref.formats.files import write_json
from finepref.formats.markdown_table import table
from finepref.pipelines.run_comparison import EQUAL, NOT_COMPARABLE, Cell, Comparison, Difference
from finepref.synth.intervals import NOT_SHOWN

PANELS = 12
"""Most figures, and most curves, in a plot; the tables have all."""
WIDE = 60
"""Characters that fit above a panel."""
SHOWN = ("better", "worse", "higher", "lower")
VERDICTS = (*SHOWN, NOT_SHOWN, NOT_COMPARABLE)


def how(found: Comparison) -> str:
    """What the differences and their intervals are."""
    parts = [
        f"Each is the group's figure minus that of {found.groups[0].name}. It is called a difference only if every "
        "interval that is known excludes 0. *Not shown*: no difference is established, which does not mean that there "
        "is none."
    ]
    if _has_records(found):
        parts.append(
            "*Records*: 95 % paired bootstrap over the records of an evaluation; it says nothing about another "
            "training with another seed."
        )
    parts.append(
        "*Seeds*: 95 % interval by Student's t, where both sides have two seeds or more; of the differences seed by "
        "seed if both have the same seeds, else by Welch's formula. *Better* and *worse* are said of accuracies, "
        "margins, losses and calibration errors, and where a file says which way is better."
    )
    parts.append(
        "Figures of an evaluation are those of the last one. Figures of the training (`train ...`) are means of the "
        "last quarter of its log, on the data that was trained on."
    )
    return " ".join(parts)


def headline(found: Comparison) -> list[str]:
    """For each further group a few lines: what is shown to be better or worse, and what is not shown."""
    lines = []
    first = found.groups[0]
    for number, group in enumerate(found.groups[1:]):
        own = {name: row[number] for name, row in found.differences.items()}
        held_out = {name: each for name, each in own.items() if each is not None and not name.startswith("train ")}
        lines.append(f"**{group.name}** ({_seeds(group)}) against **{first.name}** ({_seeds(first)}):")
        if not any(own.values()):
            lines.append("- no figure is known of both")
            continue
        trained = {name: each for name, each in own.items() if each is not None and name not in held_out}
        if not held_out:
            lines.append("- no held-out figure is known of both: what follows is of the data that was trained on")
        for kind, part in (("held-out", held_out), ("training", trained)):
            lines += _of_kind(kind, part)
    if found.compared:
        called = sum(each.verdict in SHOWN for row in found.differences.values() for each in row if each)
        lines.append("")
        lines.append(
            f"Of {found.compared} differences with an interval {called} {'is' if called == 1 else 'are'} shown. If "
            f"nothing differed, chance alone would show about {found.compared / 20:.1f}, and often several at a time: "
            "the figures of one run depend on each other."
        )
    return lines


def _of_kind(kind: str, differences: Mapping[str, Difference]) -> list[str]:
    """The lines on one group's held-out figures, or on those of its training."""
    if not differences:
        return []
    counts = {word: sum(each.verdict == word for each in differences.values()) for word in VERDICTS}
    verdicts = ", ".join(f"{word} in {count}" for word, count in counts.items() if count)
    lines = [f"- of {len(differences)} {kind} figures: {verdicts}"]
    for word in SHOWN:
        lines += [f"- {word}: {_told(name, each)}" for name, each in differences.items() if each.verdict == word]
    for word in (NOT_SHOWN, NOT_COMPARABLE):
        reasons: dict[str, list[str]] = {}
        for name, each in differences.items():
            if each.verdict == word:
                reasons.setdefault(each.why, []).append(name)
        lines += [f"- {word} ({why}): {', '.join(names)}" for why, names in reasons.items()]
    return lines


def _has_records(found: Comparison) -> bool:
    return any(each.records for row in found.differences.values() for each in row if each)


def markdown(found: Comparison, plots: Sequence[str] = ()) -> str:
    """The whole report as Markdown."""
    parts = ["# Runs beside each other", "\n".join(headline(found))]
    parts += [f"![{Path(name).stem}]({name})" for name in plots]
    parts += ["## What differs", _settings(found), "## Runs", _runs(found)]
    parts += ["## Figures", "Mean ± standard deviation over seeds.", table(*figures_table(found))]
    if len(found.groups) > 1:
        parts += [f"## Differences to {found.groups[0].name}", how(found), table(*differences_table(found))]
    if found.notes:
        parts += ["## Notes", "\n".join(f"- {note}" for note in found.notes)]
    return "\n\n".join(parts) + "\n"


def figures_table(found: Comparison) -> tuple[list[str], list[list[str]]]:
    """Header and rows: a figure in each row, a group in each column."""
    rows = [[name, *(_cell(cell) for cell in cells)] for name, cells in found.table.items()]
    return ["figure", *(group.name for group in found.groups)], rows


def differences_table(found: Comparison) -> tuple[list[str], list[list[str]]]:
    """Header and rows: figure, group, difference, the intervals and the verdict; no column for records without any."""
    rows, known = [], _has_records(found)
    for name, row in found.differences.items():
        for group, each in zip(found.groups[1:], row, strict=True):
            if each is not None:
                records = f"{_interval(each.records)}, {each.number}" if each.records else "-"
                verdict = f"{each.verdict} ({each.why})" if each.why else each.verdict
                intervals = [*([records] if known else []), _interval(each.seeds)]
                rows.append([name, group.name, _signed(each.value), *intervals, verdict])
    return ["figure", "group", "difference", *(["records"] if known else []), "seeds", "verdict"], rows


def write(found: Comparison, folder: Path) -> list[Path]:
    """Write report.md, report.html, report.csv, report.json and the plots into a folder; gives the files."""
    folder.mkdir(parents=True, exist_ok=True)
    plots = draw(found, folder)
    files = {
        "report.md": markdown(found, [file.name for file in plots]),
        "report.html": page(found, plots),
        "report.csv": table_csv(found),
    }
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    write_json(folder / "report.json", content(found))
    return [*(folder / name for name in (*files, "report.json")), *plots]


def table_csv(found: Comparison) -> str:
    """A row for each figure of each group."""
    out = io.StringIO()
    writer = csv.writer(out)
    header = ["figure", "group", "runs", "mean", "sd", "values", "difference", "records_low", "records_high", "n"]
    writer.writerow([*header, "seeds_low", "seeds_high", "verdict", "why"])
    for name, cells in found.table.items():
        for group, cell, each in zip(found.groups, cells, [None, *found.differences[name]], strict=True):
            if cell is None:
                continue
            values = " ".join(f"{value:.6g}" for value in cell.values)
            line: list[object] = [name, group.name, len(group.runs), cell.mean, cell.spread, values]
            if each is not None:
                line += [each.value, *(each.records or (None, None)), each.number or None]
                line += [*(each.seeds or (None, None)), each.verdict, each.why]
            writer.writerow([*line, *[None] * (13 - len(line))])
    return out.getvalue()


def content(found: Comparison) -> dict[str, Any]:
    """All of it, JSON-ready."""
    return {
        "groups": [
            {"name": group.name, "runs": [str(run.path) for run in group.runs], "seeds": group.seeds}
            for group in found.groups
        ],
        "against": found.groups[0].name,
        "differing": {name: list(values) for name, values in found.differing.items()},
        "figures": {
            name: [cell and {"mean": cell.mean, "sd": cell.spread, "values": [*cell.values]} for cell in cells]
            for name, cells in found.table.items()
        },
        "differences": {name: [each and _json(each) for each in row] for name, row in found.differences.items()},
        "notes": list(found.notes),
    }


def page(found: Comparison, plots: Sequence[Path]) -> str:
    """The report as one HTML file, with its plots inside."""
    body = ["<h1>Runs beside each other</h1>", _listed(headline(found))]
    for file in plots:
        data = base64.b64encode(file.read_bytes()).decode()
        body.append(f'<img alt="{html.escape(file.stem)}" src="data:image/png;base64,{data}">')
    body += ["<h2>What differs</h2>", _html_table(*_settings_rows(found)), "<h2>Runs</h2>"]
    body += [_html_table(*_runs_rows(found)), "<h2>Figures</h2>", "<p>Mean ± standard deviation over seeds.</p>"]
    body.append(_html_table(*figures_table(found)))
    if len(found.groups) > 1:
        title = f"<h2>Differences to {html.escape(found.groups[0].name)}</h2>"
        body += [title, f"<p>{_inline(how(found))}</p>", _html_table(*differences_table(found))]
    if found.notes:
        body += ["<h2>Notes</h2>", _listed([f"- {note}" for note in found.notes])]
    style = (
        "body{font:15px/1.5 sans-serif;max-width:75em;margin:2em auto;padding:0 1em}table{border-collapse:collapse}"
        "td,th{border:1px solid #bbb;padding:.2em .6em;text-align:left}img{max-width:100%}"
        ".better{background:#dfd}.worse{background:#fdd}"
    )
    head = f'<meta charset="utf-8"><title>Runs beside each other</title><style>{style}</style>'
    return f"<!doctype html><html><head>{head}</head><body>{''.join(body)}</body></html>\n"


def draw(found: Comparison, folder: Path) -> list[Path]:
    """Draw figures.png (every seed, and the mean, by group) and curves.png; none without matplotlib or points."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        return []
    files = []
    names = [
        name
        for name, row in found.differences.items()
        if any(each is not None and each.verdict != NOT_COMPARABLE and each.why != EQUAL for each in row)
    ]
    names = sorted(names, key=lambda name: not any(each and each.verdict in SHOWN for each in found.differences[name]))
    names, count = names[:PANELS], len(names)
    if names:
        figure = Figure(figsize=(12, 2.6 * -(-len(names) // 3)), layout="constrained")
        for axis, name in zip(_panels(figure, len(names)), names, strict=False):
            _draw_figure(axis, found, name)
        first = found.groups[0].name
        told = f"dot: a seed; upright: mean; dashed: mean of {first}; thin line: 95 % interval of the difference to "
        told += f"{first}, drawn around the mean: no difference is shown if it crosses the dashed line"
        figure.supxlabel(f"{told}{_part(len(names), count, 'figures; the tables have all')}", fontsize="small")
        files.append(folder / "figures.png")
        figure.savefig(files[-1], dpi=110)
    curves = dict.fromkeys(name for group in found.groups for run in group.runs for name in run.curves)
    moving = [name for name in curves if any(len({y for _, y in each}) > 1 for each in _curves(found, name))]
    names = sorted(moving, key=lambda name: (not name.startswith("eval_"), name != "loss"))
    names, count = names[:PANELS], len(names)
    if names:
        figure = Figure(figsize=(12, 2.6 * -(-len(names) // 3)), layout="constrained")
        panels = _panels(figure, len(names))
        for axis, name in zip(panels, names, strict=False):
            for number, group in enumerate(found.groups):
                for at, run in enumerate(run for run in group.runs if name in run.curves):
                    x, y = zip(*run.curves[name], strict=True)
                    label = group.name if at == 0 else None
                    axis.plot(x, y, color=f"C{number % 10}", label=label, alpha=0.8, marker="." if len(x) < 30 else "")
            title = name if name.startswith("eval_") else f"train {name}"
            unlike = any(each and each.verdict == NOT_COMPARABLE for each in found.differences.get(title, ()))
            axis.set_title(f"{title} (not comparable)" if unlike else title, fontsize="small")
            axis.set_xlabel("step", fontsize="small")
            axis.tick_params(labelsize="small")
        handles = {
            label: line for axis in panels for line, label in zip(*axis.get_legend_handles_labels(), strict=True)
        }
        figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=3, fontsize="small")
        figure.supxlabel(f"a line: a seed{_part(len(names), count, 'curves')}", fontsize="small")
        files.append(folder / "curves.png")
        figure.savefig(files[-1], dpi=110)
    return files


def _part(shown: int, count: int, what: str) -> str:
    """What a picture leaves out."""
    return "" if shown == count else f". {shown} of {count} {what}"


def _panels(figure: Any, count: int) -> list[Any]:
    axes = figure.subplots(-(-count // 3), 3, squeeze=False).ravel().tolist()
    for axis in axes[count:]:
        axis.set_axis_off()
    return list(axes[:count])


def _draw_figure(axis: Any, found: Comparison, name: str) -> None:
    """Every seed as a dot and the mean as a line; the verdicts above."""
    for number, cell in enumerate(found.table[name]):
        if cell is None:
            continue
        axis.plot(cell.values, [number] * len(cell.values), "o", color=f"C{number % 10}", alpha=0.6)
        axis.plot([cell.mean], [number], "|", color=f"C{number % 10}", markersize=18, markeredgewidth=2)
        each = found.differences[name][number - 1] if number else None
        if each is not None and (interval := each.seeds or each.records) and each.verdict != NOT_COMPARABLE:
            low, high = (cell.mean - each.value + end for end in interval)
            axis.plot([low, high], [number + 0.22] * 2, color=f"C{number % 10}", linewidth=1)
    base = found.table[name][0]
    if base is not None:
        axis.axvline(base.mean, color="gray", linewidth=0.8, linestyle="--")
    labels = [group.name if len(group.name) < 30 else f"{group.name[:27]}..." for group in found.groups]
    axis.set_yticks(range(len(labels)), labels, fontsize="small")
    axis.set_ylim(len(labels) - 0.5, -0.5)
    row = zip(labels[1:], found.differences[name], strict=True)
    verdicts = "; ".join(f"{label} {each.verdict if each else '-'}" for label, each in row)
    axis.set_title(f"{name}\n{verdicts}" if len(verdicts) < WIDE else name, fontsize="small")
    axis.tick_params(axis="x", labelsize="small")
    axis.locator_params(axis="x", nbins=4)


def _curves(found: Comparison, name: str) -> Iterator[Sequence[tuple[float, float]]]:
    return (run.curves[name] for group in found.groups for run in group.runs if name in run.curves)


def _told(name: str, each: Difference) -> str:
    intervals = []
    if each.records:
        intervals.append(f"{_interval(each.records)} over {each.number} records")
    if each.seeds:
        intervals.append(f"{_interval(each.seeds)} over seeds")
    else:
        intervals.append("whether another seed agrees is not known")
    return f"{name} by {_signed(each.value)} ({'; '.join(intervals)})"


def _seeds(group: Any) -> str:
    count = len(group.runs)
    known = [str(seed) for seed in group.seeds if not str(seed).startswith("run ")]
    if not known:
        return f"{count} run" + "s" * (count > 1)
    return f"seed{'s' * (len(known) > 1)} {', '.join(known)}"


def _settings_rows(found: Comparison) -> tuple[list[str], list[list[str]]]:
    rows = [
        [name, *("-" if each is None else str(each) for each in values)] for name, values in found.differing.items()
    ]
    return ["setting", *(group.name for group in found.groups)], rows


def _settings(found: Comparison) -> str:
    if not found.differing:
        return "Nothing that the receipts tell, apart from the seed."
    return table(*_settings_rows(found))


def _runs_rows(found: Comparison) -> tuple[list[str], list[list[str]]]:
    rows = [
        [group.name, str(run.path), "-" if str(seed).startswith("run ") else str(seed)]
        for group in found.groups
        for run, seed in zip(group.runs, group.seeds, strict=True)
    ]
    return ["group", "run", "seed"], rows


def _runs(found: Comparison) -> str:
    return table(*_runs_rows(found))


def _cell(cell: Cell | None) -> str:
    if cell is None:
        return "-"
    return _number(cell.mean) if cell.spread is None else f"{_number(cell.mean)} ± {_number(cell.spread)}"


def _number(value: float) -> str:
    """Four digits, and at most four decimals."""
    if value != 0 and not 1e-3 <= abs(value) < 1e4:
        return f"{value:.3g}"
    whole = len(f"{abs(value):.0f}") if abs(value) >= 1 else 0
    return f"{value:.{4 - whole}f}"


def _signed(value: float) -> str:
    return f"{'+' if value >= 0 else ''}{_number(value)}"


def _interval(found: tuple[float, float] | None) -> str:
    return "-" if found is None else f"{_signed(found[0])} to {_signed(found[1])}"


def _json(each: Difference) -> dict[str, Any]:
    return {
        "difference": each.value,
        "records": each.records and [*each.records],
        "n": each.number,
        "seeds": each.seeds and [*each.seeds],
        "verdict": each.verdict,
        "why": each.why,
    }


def _html_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{html.escape(value)}</th>" for value in header)
    lines = []
    for row in rows:
        word = row[-1] if row[-1] in ("better", "worse") else ""
        cells = "".join(f"<td>{html.escape(value)}</td>" for value in row)
        lines.append(f'<tr class="{word}">{cells}</tr>' if word else f"<tr>{cells}</tr>")
    return f"<table><tr>{head}</tr>{''.join(lines)}</table>"


def _listed(lines: Sequence[str]) -> str:
    """Lines of Markdown, of which those with a dash are items of a list, as HTML."""
    out, inside = [], False
    for line in lines:
        item = line.startswith("- ")
        if item != inside:
            out.append("<ul>" if item else "</ul>")
            inside = item
        out.append(f"<li>{_inline(line[2:])}</li>" if item else f"<p>{_inline(line)}</p>" if line else "")
    return "".join(out) + ("</ul>" if inside else "")


def _inline(text: str) -> str:
    """Escaped, with **bold**, *emphasis* and `code`."""
    for mark, tag in (("**", "b"), ("*", "i"), ("`", "code")):
        parts = (html.escape(text) if mark == "**" else text).split(mark)
        if len(parts) % 2:
            text = "".join(f"<{tag}>{part}</{tag}>" if i % 2 else part for i, part in enumerate(parts))
        elif mark == "**":
            text = html.escape(text)
    return text
