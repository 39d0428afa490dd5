"""The order of runs: by time, or by a score, among scores that may be compared alone.

Covered: which scores those are, said in words; the others at the end, never ranked among them.
Not covered: whether a difference means anything (that takes both systems' texts).
"""

import json
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from orchestrator.errors import SpecError, did_you_mean
from orchestrator.runs.registry import Result, Row
from orchestrator.scoring.metrics import HEADINGS, RANKED

ORDERS = ("created", "ended", *RANKED)


class Sorted(NamedTuple):
    """Rows in order, and what is to be said about it."""

    rows: list[Row]
    notes: list[str]


def put_in_order(rows: Sequence[Row], order: str, limit: int | None = None) -> Sorted:
    """Rows by `created`, `ended`, or by a score, the best first: METRIC, or METRIC:TESTSET.

    Only scores of one metric, test set, split, number of segments, text and signature are ranked: those that most of
    the runs have. Runs without such a score stand at the end.

    Args:
        rows: the runs.
        order: one of ORDERS.
        limit: how many of them: the last, or in an order by a score the first.

    Raises:
        SpecError: no such order, or no run has a score on that test set.
    """
    metric, _, testset = order.partition(":")
    if metric not in ORDERS or (testset and metric not in RANKED):
        raise SpecError(
            f"no order {order!r}{did_you_mean(metric, ORDERS)}",
            f"--sort {'|'.join(ORDERS)}, a score also as bleu:TESTSET",
        )
    rows = sorted(rows, key=_by_creation)
    if metric == "created":
        return Sorted(rows[-(limit or 0) :], [])
    if metric == "ended":
        ordered = sorted(rows, key=lambda row: (row.ended is None, row.ended or 0))
        return Sorted(ordered[-(limit or 0) :], [])
    if not rows:
        return Sorted([], [])
    ranked = _by_score(rows, metric, testset)
    return ranked._replace(rows=ranked.rows[:limit])


def _by_score(rows: Sequence[Row], metric: str, testset: str) -> Sorted:
    own = {row.id: [Result(*each) for each in json.loads(text)] for row in rows if (text := getattr(row, metric))}
    groups = Counter(each[:4] for results in own.values() for each in results if not testset or each.testset == testset)
    if not groups:
        known = sorted({each.testset for results in own.values() for each in results})
        where = f" on {testset!r}{did_you_mean(testset, known)}" if testset else ""
        raise SpecError(
            f"none of {len(rows)} runs has a complete {HEADINGS[metric]}{where}; there are scores on: "
            f"{', '.join(known) or 'nothing'}"
        )
    group = max(groups, key=lambda key: groups[key])
    members = {name: each for name, results in own.items() for each in results if each[:4] == group}
    texts = Counter(each.text_sha256 for each in members.values() if each.text_sha256)
    same_text = {"", *(text for text, _ in texts.most_common(1))}  # '': the record does not tell
    ranked = [row for row in rows if row.id in members and members[row.id].text_sha256 in same_text]
    ranked.sort(key=lambda row: members[row.id].score, reverse=metric != "ter")
    others = [row for row in rows if row.id not in members or members[row.id].text_sha256 not in same_text]
    testset, split, n_segments, signature = group
    lower = " (lower is better)" if metric == "ter" else ""
    notes = [f"sorted by {HEADINGS[metric]} on {testset} {split}, {n_segments} segments, {signature}{lower}"]
    if others:
        elsewhere = sum(1 for row in others if row.id in own)
        notes.append(
            f"at the end, not ranked: {len(others)} of {len(rows)} runs; {elsewhere} of them have {HEADINGS[metric]} "
            "on other segments or texts, or by another signature"
        )
    return Sorted([_shown(row, metric, members[row.id]) for row in ranked] + others, notes)


def _shown(row: Row, metric: str, result: Result) -> Row:
    """The row with the benchmark that it is ranked by."""
    said = f"{HEADINGS[metric]} {result.score:.1f}"
    return row._replace(last=f"{said} ({result.of}: {result.testset} {result.split}, {result.n_segments} segments)")


def _by_creation(row: Row) -> tuple[float, int, str]:
    return row.created, len(row.id), row.id  # demo-...-2 before demo-...-10
