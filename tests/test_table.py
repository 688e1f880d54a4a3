"""Law 10: parts go together or are refused by name, and any two that do meet in the table."""

import re

from tests import pairs
from tests.table import MIXES, RECIPES, ROWS, Row

NAMED = re.compile(r"\b(memory|select|quantize|codec|exchange|body|predictor)=\w+\(")


def test_law_10_any_two_parts_that_go_together_meet_in_a_row():
    mixes = [mix for mix in pairs.every_mix().values() if isinstance(mix, Row)]
    missing = pairs.missing(ROWS.values(), mixes)
    assert not missing, f"{sorted(missing)}: python -m tests.pairs prints rows for tests/table.py"


def test_law_10_parts_that_do_not_go_together_are_named():
    refusals = {str(mix) for mix in pairs.every_mix().values() if isinstance(mix, ValueError)}
    assert refusals
    for words in refusals:
        assert len(set(NAMED.findall(words))) >= 2, words


def test_no_two_rows_have_one_name():
    assert len(ROWS) == len(RECIPES) + len(MIXES)


def test_a_pair_is_missing_until_a_row_has_it():
    mixes = [ROWS["hgc"], ROWS["stc"]]
    missing = pairs.missing([ROWS["hgc"]], mixes)
    assert ("values Signs", "exchange Sharded") in missing
    assert pairs.missing(mixes, mixes) == set()
    (words,) = pairs.covering(missing, {("stc",): pairs.pairs(ROWS["stc"])})
    assert words == ("stc",)
