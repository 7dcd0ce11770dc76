"""What a launch says of its trials before the first one."""

from dataclasses import replace

import pytest

from search.driver.opening import opening_of
from search.trial import Proposal
from spaces.allocation import Allocation


def proposals(*labels: str | None) -> list[Proposal]:
    proposal = Proposal(number=0, allocation=Allocation({"b.qk": 8}), space="contract", seed=0)
    return [
        replace(proposal, number=number, label=label, recipe=label if label == "vtp" else None)
        for number, label in enumerate(labels)
    ]


FIXED = ["dense", *["warm start"] * 3, "uniform", "uniform contract+low-rank", "random", "vtp", "vtp"]
KINDS = "1 dense reference, 3 warm starts, 3 baselines, 2 recipes"


@pytest.mark.parametrize(
    ("labels", "wanted", "text", "warning"),
    [
        (
            FIXED,
            12,
            f"12 trials: {KINDS}, 3 proposals of the sampler",
            "3 of 12 are left to search with: --trials 29 leaves 20",
        ),
        (FIXED, 10, f"10 trials: {KINDS}, 1 proposal of the sampler", "1 of 10 is left to search with: --trials 29"),
        (FIXED, 9, f"9 trials: {KINDS}, 0 proposals of the sampler", "none of 9 is left to search with: --trials 29"),
        (FIXED, 5, "5 trials: 1 dense reference, 3 warm starts, 1 baseline, 0 proposals of the sampler", "none of 5 is left"),
        (FIXED, 16, f"16 trials: {KINDS}, 7 proposals of the sampler", "7 of 16 are left"),
        (FIXED, 17, f"17 trials: {KINDS}, 8 proposals of the sampler", None),
        ([*FIXED, None, None], 50, f"50 trials: {KINDS}, 41 proposals of the sampler", None),
        (
            ["dense", "warm start", None, None, None],
            5,
            "5 trials: 1 dense reference, 1 warm start, 3 proposals",
            "3 of 5 are left",
        ),
    ],
)
def test_trials_by_kind_and_whether_few_are_left(labels: list[str | None], wanted: int, text: str, warning: str | None) -> None:
    opening = opening_of(proposals(*labels), wanted, targets=1, recipe=False)
    assert opening.text.startswith(text)
    assert (opening.warning is None) is (warning is None)
    assert warning is None or warning in (opening.warning or "")
    assert warning is None or f"{sum(label is not None for label in labels)} trials are fixed" in (opening.warning or "")


def test_the_last_trials_confirm_what_is_best() -> None:
    opening = opening_of(proposals(*FIXED), 50, targets=1, recipe=False, confirming=5)
    assert opening.text == f"50 trials: {KINDS}, 36 proposals of the sampler, 5 to confirm what is best"
    few = opening_of(proposals(*FIXED), 16, targets=1, recipe=False, confirming=2)
    assert "5 of 16 are left" in str(few.warning)
    assert "--trials 33 leaves 20" in str(few.warning), "9 fixed ones, and 4 that confirm"
    again = [*proposals(*FIXED, None, None), *(replace(entry, repeats=3) for entry in proposals("again 3"))]
    assert opening_of(again, 12, targets=1, recipe=False, confirming=2).text.endswith(
        "2 proposals of the sampler, 1 to confirm what is best"
    )
    assert "confirm" not in opening_of(proposals(*FIXED), 9, targets=1, recipe=False, confirming=1).text, "none is left"


def test_every_target_wants_proposals_of_its_own() -> None:
    assert opening_of(proposals(*FIXED), 17 + 7, targets=2, recipe=False).warning is not None
    assert opening_of(proposals(*FIXED), 17 + 8, targets=2, recipe=False).warning is None
    assert "--trials 49 leaves 40" in str(opening_of(proposals(*FIXED), 12, targets=2, recipe=False).warning)


def test_a_recipe_alone_is_no_search() -> None:
    opening = opening_of(proposals("dense", "vtp"), 2, targets=1, recipe=True)
    assert (opening.text, opening.warning) == ("2 trials: 1 dense reference, 1 recipe", None)
