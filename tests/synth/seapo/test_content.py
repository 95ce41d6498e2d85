"""What a rewriting changed: content, or the form only."""

from __future__ import annotations

import pytest
from finepref.synth.seapo.content import changes
from finepref.synth.seapo.gates import fault


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("It has 1,200 arches.", "It has 1200 arches.", set()),
        ("It has 12 arches.", "It has 13 arches.", {"number"}),
        ("It has twelve arches.", "It has eleven arches.", {"number", "words"}),
        ("It lies near Bern.", "It lies near Basel.", {"name", "words"}),
        ("It is open.", "It is not open.", {"negation"}),
        ("It isn't open.", "It is open.", {"negation"}),
        ("So it has 12 large arches, as in Bern.", "It has arches.", set()),
        ("It opens before noon.", "It opens after noon.", {"negation", "words"}),
        ("It is open.", "It is closed.", {"negation", "words"}),
        ("It makes you happy.", "It makes you sad.", {"words"}),
        ("The city has grown, and it is large.", "It is large and the city has grown.", set()),
        ("The numbers increase.", "The number increased.", set()),
        ("She walks there.", "She walked there!", set()),
        ("It is open.", "It is open, as Dr. Marsh found in 1987.", {"name", "number", "words"}),
        ("北京是首都。", "上海是首都。", {"words"}),
        ("他在北边。", "他在南边。", {"words", "negation"}),
        ("它是开放的。", "它不是开放的。", {"negation"}),
        ("它是开放的。", "它就是开放了。", set()),
    ],
)
def test_kinds_of_changes(old, new, expected):
    assert changes(old, new) == expected


@pytest.mark.parametrize(
    ("new", "change", "measured"),
    [
        ("It makes a person sad.", "words", None),
        ("It makes a person sad.", "facts", "changed: words; --change facts"),
        ("It does not make a person happy.", "facts", None),
        ("A person it makes happy.", "words", "changed: form only; --change words"),
        ("A person it makes happy.", "any", None),
    ],
)
def test_a_rewriting_must_change_what_the_option_says(new, change, measured):
    found = fault("It makes a person happy.", new, max_edit=1, change=change)
    assert found == (None if measured is None else ("paraphrase", measured))
