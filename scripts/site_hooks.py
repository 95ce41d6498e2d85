"""Hooks of mkdocs (mkdocs.yml): the site has the repository's tree, so that every link works on GitHub and here.

mkdocs reads one folder, while our pages link to recipes, code and README files all over the repository. So each file
of the site is known by its path in the repository, and mkdocs checks links and anchors itself. A link to a file that
is no page gets a page that shows it; a link to a folder leads to its README.md, or to a page that lists its files.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.plugins import get_plugin_logger
from mkdocs.structure.files import File, Files

LOG = get_plugin_logger(__name__)
ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"(?<=\]\()(?!https?://|mailto:|#)([^)\s#]+)")
PICTURES = {".png", ".svg", ".jpg"}
LANGUAGES = {".py": "python", ".yaml": "yaml", ".sh": "bash", ".json": "json", ".toml": "toml", ".jsonl": "json"}
LONGEST = 60_000
"""Characters of a file that its page shows."""


def pages() -> list[Path]:
    """The pages that people wrote, and those that our scripts make of code."""
    found = [ROOT / name for name in ("README.md", "README_zh.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")]
    for folder in ("docs", "dataset_info", "benchmarks", "examples"):
        found += sorted((ROOT / folder).rglob("*.md"))
    return [path for path in found if path.is_file()]


def links(path: Path) -> list[str]:
    """Where the relative links of a page lead, outside its blocks of code."""
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    return LINK.findall(text)


def address(path: str) -> str:
    """The place of a repository's file in the site: README.md is its first page, pages of docs/ are at its top."""
    return "pages.md" if path == "docs/README.md" else path.removeprefix("docs/")


def on_files(files: Files, config: Any) -> Files:
    """Replace the files of docs/ by those of the repository, by their paths there."""
    made = Files([each for each in files if each.src_dir != config.docs_dir])
    _add(made, config, "docs/site.css")
    shown: dict[str, Path] = {}
    for page in pages():
        name = page.relative_to(ROOT).as_posix()
        _add(made, config, name)
        for link in links(page):
            target = (page.parent / link).resolve()
            if not target.is_relative_to(ROOT) or not target.exists() or target.suffix == ".md":
                continue
            path = target.relative_to(ROOT).as_posix()
            if target.suffix in PICTURES:
                _add(made, config, path)
            elif not (target / "README.md").is_file():
                shown[path] = target
    for path in list(shown.values()):
        if path.is_dir():
            shown |= {each.relative_to(ROOT).as_posix(): each for each in _files_of(path)}
    for path, target in shown.items():
        _add(made, config, f"{path}.md", _listing(path, target) if target.is_dir() else _showing(path, target))
    return made


def _files_of(folder: Path) -> list[Path]:
    files = (each for each in sorted(folder.iterdir()) if each.is_file())
    return [each for each in files if each.suffix in LANGUAGES]


def _add(files: Files, config: Any, path: str, content: str | None = None) -> None:
    """A file of the repository; with `content` a page that is made here."""
    if files.get_file_from_path(path):
        return
    made = File(path, str(ROOT), config.site_dir, config.use_directory_urls)
    if content is not None:
        made = File.generated(config, path, content=content)
    placed = File(address(path), None, config.site_dir, config.use_directory_urls)
    made.dest_uri, made.abs_dest_path, made.url, made.name = (
        placed.dest_uri,
        str(Path(config.site_dir) / placed.dest_uri),
        placed.url,
        placed.name,
    )
    files.append(made)


def _showing(path: str, target: Path) -> str:
    """A page that shows a file."""
    text = target.read_text(encoding="utf-8")
    if len(text) > LONGEST:
        text = text[:LONGEST] + f"\n... {len(text) - LONGEST:,} more characters"
    language = LANGUAGES.get(target.suffix, "text")
    return f"---\ntitle: {path}\nsearch:\n  exclude: true\n---\n\n# `{path}`\n\n~~~~{language}\n{text}\n~~~~\n"


def _listing(path: str, target: Path) -> str:
    """A page that lists the files of a folder."""
    rows = [f"- [{each.name}]({target.name}/{each.name}.md)" for each in _files_of(target)]
    rows += [f"- [{each.name}]({target.name}/{each.name})" for each in sorted(target.glob("*.md"))]
    return f"---\ntitle: {path}\nsearch:\n  exclude: true\n---\n\n# `{path}`\n\n" + "\n".join(rows) + "\n"


def on_nav(nav: Any, config: Any, files: Files) -> Any:
    """Warn of a page that people wrote and that no reader would find; kept runs are found by links."""
    listed = {page.file.src_uri for page in nav.pages}
    for page in pages():
        name = page.relative_to(ROOT).as_posix()
        if name not in listed and not name.startswith("docs/reproduction/"):
            LOG.warning("%s is not in nav, in mkdocs.yml", name)
    return nav


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Lead the links to files and folders to the pages that show them. Blocks of code stay as they are."""
    here = ROOT / page.file.src_uri

    def led(match: re.Match[str]) -> str:
        link = match[0]
        target = (here.parent / link).resolve()
        if not target.is_relative_to(ROOT):
            return link
        path = target.relative_to(ROOT).as_posix()
        if target.is_dir() and (target / "README.md").is_file():
            return f"{link.rstrip('/')}/README.md"
        return f"{link.rstrip('/')}.md" if files.get_file_from_path(f"{path}.md") else link

    markdown = re.sub(r"\A<!--.*?-->\n", "", markdown, flags=re.S)  # else the heading below would give no title
    parts = re.split(r"(^(```|~~~~).*?^\2)", markdown, flags=re.M | re.S)
    kept = [part for number, part in enumerate(parts) if number % 3 != 2]
    return "".join(part if part.startswith(("```", "~~~~")) else LINK.sub(led, part) for part in kept)
