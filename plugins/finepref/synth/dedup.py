"""Leaves out near-equal rows of a file: by equal text, by MinHash of the words, or by meaning (SemDeDup).

    exact      texts that are equal
    normalized texts that are equal except for case and white space
    minhash    Jaccard similarity of the sets of word n-grams, for the pairs that MinHash finds (datasketch's LSH)
    semantic   cosine similarity of embeddings above 1 - eps within k-means clusters (SemDeDup, arXiv 2303.09540)

Each method is a function from texts to groups: lists of row numbers, the row to keep first. ReverseGen
(arXiv 2410.16736) uses minhash with threshold .78 and semantic with eps .04, keeping the hard rows.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from tqdm import tqdm

from finepref.formats.bad_rows import BadRows
from finepref.formats.files import write_json
from finepref.formats.identified import read_each
from finepref.formats.jsonl import RawRow, write_jsonl
from finepref.formats.records import Record, to_row
from finepref.formats.row import RowReader
from finepref.formats.row_source import Part
from finepref.synth.data_sources.inputs import Input
from finepref.synth.data_sources.job_rows import ALL, JobRows, Row, Rows, Wants, rows_of

if TYPE_CHECKING:
    import numpy
    from datasketch import MinHash

Keep = Literal["hard", "easy", "random"]
Group = list[int]

_WORD = re.compile(r"\w+|[^\w\s]")


class Deduplicated(NamedTuple):
    """The number of rows, of rows kept, and of rows in the largest group of near-equal ones."""

    rows: int
    kept: int
    largest: int


def exact(texts: Sequence[str]) -> list[Group]:
    """Equal texts; the first is kept."""
    groups: dict[str, Group] = {}
    for i, text in enumerate(texts):
        groups.setdefault(text, []).append(i)
    return [*groups.values()]


def normalized(texts: Sequence[str]) -> list[Group]:
    """Texts that are equal except for case and white space; the first is kept."""
    return exact([*map(normalised, texts)])


def minhash(
    texts: Sequence[str], *, threshold: float = 0.78, permutations: int = 128, ngram: int = 1, seed: int = 1
) -> list[Group]:
    """Each text joins the group of the first kept text whose similarity is at least `threshold`, or else is kept.

    Args:
        texts: any number.
        threshold: Jaccard similarity of the sets of word n-grams, exact for the pairs that the index finds.
        permutations: of each MinHash; with more of them the index misses fewer pairs.
        ngram: words in each n-gram; a shorter text is one n-gram.
        seed: random seed of the permutations.
    """
    from datasketch import MinHashLSH

    # The index finds more candidates than by default, because the sets themselves decide about each candidate.
    index = MinHashLSH(threshold=threshold, num_perm=permutations, weights=(0.1, 0.9))
    groups: dict[int, Group] = {}
    for i, sketch in enumerate(_sketches(texts, permutations=permutations, ngram=ngram, seed=seed)):
        mine = shingles(texts[i], ngram)
        for j in sorted(index.query(sketch)):
            other = shingles(texts[j], ngram)
            if len(mine & other) >= threshold * len(mine | other):
                groups[j].append(i)
                break
        else:
            groups[i] = [i]
            index.insert(i, sketch, check_duplication=False)
    return [*groups.values()]


def semantic(
    vectors: numpy.ndarray, *, eps: float = 0.04, clusters: int = 0, keep: Keep = "hard", seed: int = 0
) -> list[Group]:
    """SemDeDup: within each k-means cluster, a row is left out if it is nearer than `eps` to an earlier one.

    Args:
        vectors: [N, D] float32 embeddings, of any length.
        eps: 1 - cosine similarity.
        clusters: of the spherical k-means; 0 = sqrt(N).
        keep: the row to keep: the one far from the cluster's centre ("hard"), near it ("easy"), or a random one.
        seed: random seed of k-means and of "random".
    """
    import faiss
    import numpy

    points = numpy.array(vectors, dtype=numpy.float32, order="C")  # [N, D], a copy
    faiss.normalize_L2(points)
    count = min(clusters or max(1, round(len(points) ** 0.5)), len(points))
    means = faiss.Kmeans(points.shape[1], count, niter=20, seed=seed, spherical=True, min_points_per_centroid=1)
    means.train(points)
    nearness, cluster = (each[:, 0] for each in means.index.search(points, 1))  # [N] cosine to the centre, [N]
    order = {"hard": nearness, "easy": -nearness, "random": numpy.array(_shuffled(len(points), seed))}[keep]
    groups: dict[int, Group] = {}
    owner: dict[int, int] = {}  # row -> the kept row of its group
    for number in range(count):
        members = numpy.flatnonzero(cluster == number)
        members = members[numpy.argsort(order[members], kind="stable")]
        for place, i in enumerate(members):
            similarity = points[members[:place]] @ points[i]  # [place]
            nearest = int(similarity.argmax()) if place else 0
            alike = place and similarity[nearest] > 1 - eps
            owner[i] = owner[members[nearest]] if alike else i
            groups.setdefault(int(owner[i]), []).append(int(i))
    return [*groups.values()]


def embeddings(texts: Sequence[str], *, embedder: str, batch_size: int = 64) -> numpy.ndarray:
    """Sentence embeddings [N, D], by any model that sentence-transformers can load, static ones included."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(embedder, trust_remote_code=False)
    return model.encode(list(texts), batch_size=batch_size, show_progress_bar=None, convert_to_numpy=True)


class _WithRecord(dict[str, object]):
    """The fields of a row and of its record; `row` is the row as it is in the file."""

    row: Mapping[str, object]


class _Whole(NamedTuple):
    """Rows of any layout, each with the fields of its first record besides its own."""

    rows: JobRows

    def parts(self) -> Iterator[Part]:
        """The files in order."""
        if not self.rows.layout:
            yield from self.rows.parts()
            return
        for file in self.rows.given.files:
            yield Part(str(file.path), self._of(file))

    def _of(self, file: Input) -> Iterator[RawRow]:
        for row in self.rows.checked(file):
            value = row.raw.value
            if row.problems or value is None:
                yield row.raw._replace(value=None, problems=row.problems)
                continue
            made = _WithRecord({**to_row(row.records[0]), **value})
            made.row = value
            yield row.raw._replace(value=made)


def read_texts(
    source: Rows, fields: Sequence[str], *, joint: str = "\n", bad_rows: BadRows | None = None
) -> tuple[list[dict[str, object]], list[str]]:
    """The good rows of a file, and the text of each: its fields, with `joint` between them.

    A field is a text, a list of texts, or messages; `prompt` also means `messages` if a row has these instead.

    Args:
        source: rows of any layout; a field that a row does not have itself, such as prompt, is that of its record.
        fields: of the text.
        joint: between fields, and between the members of a list.
        bad_rows: see `read_each`.

    Raises:
        BadData: see `read_each`.
    """

    def read(reader: RowReader) -> tuple[dict[str, object], str]:
        parts = [_text(reader.row, field, joint) for field in fields]
        for field, part in zip(fields, parts, strict=True):
            if part is None:
                reader.note(field, "FP010", "the field is missing or holds no text")
        whole = reader.row.row if isinstance(reader.row, _WithRecord) else reader.row
        return {**whole}, joint.join(part for part in parts if part)

    def has_texts(row: Mapping[str, object]) -> bool:
        return all(_text(row, field, joint) is not None for field in fields)

    def fields_of(record: Record, told: Counter[str]) -> Row:
        return Row(to_row(record))

    wants = Wants("dedup", "rows with these fields", has_texts, None, ALL, fields_of, mixed=True)
    found = read_each(_Whole(rows_of(source, wants)), read, bad_rows=bad_rows)
    return [row for row, _ in found], [text for _, text in found]


def dedup(
    name: str, output: Path, groups: Sequence[Group], rows: Sequence[Mapping[str, object]], settings: object
) -> Deduplicated:
    """Write the kept rows in the order of the file, and `<stem>.report.json` with every group of near-equal rows.

    The report names rows by number, from 0, and by id if they have one.

    Args:
        name: of the input, for the report.
        output: the JSON Lines file to write.
        groups: of near-equal rows, by row number; the first row of each is kept.
        rows: of the input.
        settings: for the report.
    """
    named = [{"row": i} | ({"id": row["id"]} if "id" in row else {}) for i, row in enumerate(rows)]
    repeated = sorted((group for group in groups if len(group) > 1), key=lambda group: (-len(group), group[0]))
    report = {
        "job": "dedup",
        "input": name,
        "settings": settings,
        "rows": len(rows),
        "kept": len(groups),
        "groups": [{"kept": named[group[0]], "left_out": [named[i] for i in sorted(group[1:])]} for group in repeated],
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    write_json(output.with_suffix(".report.json"), report)
    write_jsonl(output, (rows[i] for i in sorted(group[0] for group in groups)))
    return Deduplicated(len(rows), len(groups), max(map(len, groups), default=0))


def normalised(text: str) -> str:
    """The text in one case and with single spaces: equal for texts that differ in case and white space only."""
    return " ".join(text.casefold().split())


def words(text: str) -> list[str]:
    """The words and punctuation marks of a text in lower case."""
    return _WORD.findall(text.casefold())


def shingles(text: str, ngram: int) -> set[str]:
    """The set of word n-grams of a text; a shorter text is one n-gram."""
    found = words(text)
    return {" ".join(found[i : i + ngram]) for i in range(max(1, len(found) - ngram + 1))}


def _sketches(texts: Sequence[str], *, permutations: int, ngram: int, seed: int) -> list[MinHash]:
    from datasketch import MinHash

    encoded = ([shingle.encode() for shingle in shingles(text, ngram)] for text in texts)
    shown = tqdm(encoded, total=len(texts), desc="minhash", unit="text", disable=None)
    return MinHash.bulk(shown, num_perm=permutations, seed=seed)


def _shuffled(count: int, seed: int) -> list[int]:
    places = list(range(count))
    random.Random(seed).shuffle(places)
    return places


def _text(row: Mapping[str, object], field: str, joint: str) -> str | None:
    value = row.get("messages") if field == "prompt" and "prompt" not in row else row.get(field)
    if isinstance(value, list):
        members = [each.get("content", each.get("value")) if isinstance(each, dict) else each for each in value]
        value = joint.join(members) if all(isinstance(each, str) for each in members) else None
    return value if isinstance(value, str) and value.strip() else None
