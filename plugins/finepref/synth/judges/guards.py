"""The guard models whose answers are read, each with its own form of question and answer.

    llama-guard       Llama Guard 2, 3 and 4: "safe", or "unsafe" and a line with the codes of categories
    shieldgemma       "Yes" (the policy is violated) or "No", then perhaps an explanation
    granite-guardian  "Yes" (there is a risk) or "No", since 3.2 with a <confidence>, since 3.3 in a <score>
    qwen3guard        lines "Safety: Safe|Unsafe|Controversial", "Categories: ..." and "Refusal: Yes|No"

The model's own chat template writes the question, so nothing of it is here. ShieldGemma's takes the policy as the
variable `guideline`, Granite Guardian's as `guardian_config`. An answer in another form gives no verdict.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, get_args

from finepref.synth.judges.verdict import Verdict

Guard = Literal["llama-guard", "shieldgemma", "granite-guardian", "qwen3guard"]
GUARDS: tuple[Guard, ...] = get_args(Guard)

_MARKS: dict[Guard, tuple[str, ...]] = {
    "llama-guard": ("unsafe", "s1"),
    "shieldgemma": ("guideline",),
    "granite-guardian": ("guardian_config",),
    "qwen3guard": ("unsafe", "controversial"),
}
"""What occurs in the chat template of each, in lower case, and in no other's."""
_CATEGORY = re.compile(r"[A-Z]{1,2}\d{1,2}(?:\s*[:.]\s*[^,]{2,60})?")
_QWEN_LINE = re.compile(r"(Safety|Categories|Refusal): *(.+)")


def policy_variables(kind: Guard, policy: str) -> Mapping[str, object]:
    """The variables of the chat template for a policy.

    Args:
        kind: of the guard.
        policy: of shieldgemma the text of the guideline; of granite-guardian the name of a risk, such as harm (the
            default), or a definition of your own; the others have their policy in the template.

    Raises:
        ValueError: shieldgemma has no policy, or a guard has one that cannot use it.
    """
    if kind == "shieldgemma":
        if not policy:
            raise ValueError("--guard shieldgemma needs --policy: the guideline that an answer must not violate")
        return {"guideline": policy}
    if kind == "granite-guardian":
        name = policy or "harm"
        # Each version of the model reads one of the two names: the first up to 3.2, the second since 3.3.
        named = ("risk_name", "criteria_id") if re.fullmatch(r"\w+", name) else ("risk_definition", "custom_criteria")
        return {"guardian_config": dict.fromkeys(named, name)}
    if policy:
        raise ValueError(f"--policy is for shieldgemma and granite-guardian; {kind} has its policy in its template")
    return {}


def read(kind: Guard, text: str, *, controversial: bool | None = None) -> Verdict:
    """The verdict in a guard's answer; the reason of an unsafe one is its categories.

    Args:
        kind: of the guard.
        text: its answer.
        controversial: whether what Qwen3Guard calls controversial passes; None = that is no verdict.
    """
    match kind:
        case "llama-guard":
            return _llama_guard(text)
        case "shieldgemma":
            return _shieldgemma(text)
        case "granite-guardian":
            return _granite_guardian(text)
        case "qwen3guard":
            return _qwen3guard(text, controversial)


def _llama_guard(text: str) -> Verdict:
    first, *rest = text.split(maxsplit=1) or [""]
    if first.casefold() not in {"safe", "unsafe"}:
        return Verdict(None, "the answer begins with neither safe nor unsafe")
    if first.casefold() == "safe":
        return Verdict(None, "the answer says safe and goes on") if rest else Verdict(True)
    categories = [each.strip() for each in " ".join(rest).strip(", \n").split(",")] if rest else []
    if "safe" in re.findall(r"\w+", " ".join(rest).casefold()):
        return Verdict(None, "the answer says safe and unsafe")
    if not all(map(_CATEGORY.fullmatch, categories)):
        return Verdict(None, "after unsafe the answer has no list of categories")
    return Verdict(False, ",".join(categories)[:200])


def _shieldgemma(text: str) -> Verdict:
    first = re.match(r"\s*\W{0,2}(Yes|No)\b(?!\s*(?:/|,?\s*(?:or|and)\s+(?:yes|no)\b))", text, re.I)
    if first is None:
        return Verdict(None, "the answer begins with neither Yes nor No")
    return Verdict(first[1].casefold() == "no")


def _granite_guardian(text: str) -> Verdict:
    """Yes or No alone, or in a <score>; a <confidence> may follow it."""
    said = re.sub(r"<confidence>\s*(?:High|Low)\s*(?:</confidence>|$)", "", text, flags=re.I).strip()
    scores = re.findall(r"<score>\s*(.*?)\s*</score>", said, re.DOTALL | re.I)
    if len(scores) > 1 or ("<score>" in said.casefold() and not scores):
        return Verdict(None, "the answer has no single score")
    answer = (scores[0] if scores else said).casefold().rstrip(".")
    if answer not in {"yes", "no"}:
        return Verdict(None, "the answer is neither Yes nor No")
    return Verdict(answer == "no")


def _qwen3guard(text: str, controversial: bool | None) -> Verdict:
    found: dict[str, str] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        match = _QWEN_LINE.fullmatch(line)
        if match is None or match[1] in found:
            return Verdict(None, "the answer is not one line each of Safety, Categories and Refusal")
        found[match[1]] = match[2].strip()
    safety, categories = found.get("Safety"), found.get("Categories", "")
    if next(iter(found), "") != "Safety" or safety not in {"Safe", "Unsafe", "Controversial"}:
        return Verdict(None, "the answer begins with no Safety of Safe, Unsafe or Controversial")
    if safety == "Safe" and categories not in {"", "None"}:
        return Verdict(None, "the answer says safe and names categories")
    told = "" if categories == "None" else categories[:200]
    if safety == "Controversial":
        return Verdict(
            controversial, "controversial" if controversial is None else f"controversial: {told}".rstrip(": ")
        )
    return Verdict(safety == "Safe", told)


def guard_of(model: str, template: str | None) -> Guard | None:
    """The kind of a guard model by the last part of its name, or by its chat template; None if that is not clear.

    Args:
        model: folder or name.
        template: the chat template of a local model; None of an endpoint's.
    """
    name = re.sub(r"[^a-z0-9]", "", Path(model).name.casefold())
    named = {kind for kind in GUARDS if kind.replace("-", "") in name}
    marked = {kind for kind in GUARDS if template and all(mark in template.casefold() for mark in _MARKS[kind])}
    if len(marked) > 1:
        marked -= {"llama-guard"}  # its marks are the most common words
    found = named & marked if named and marked else named | marked
    return next(iter(found)) if len(found) == 1 else None


def check_template(kind: Guard, template: str | None) -> None:
    """Check that a chat template takes the policy, so that it does not ask another question without a word.

    Raises:
        ValueError: it does not.
    """
    wanted = {"shieldgemma": "guideline", "granite-guardian": "guardian_config"}.get(kind)
    if wanted and template is not None and wanted not in template:
        raise ValueError(f"the model's chat template does not read {wanted}, so it is not the template of {kind}")
