"""One entry says all of an operator: none is half added, and nothing else needs to know a new one."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
from local_vits import KINDS as MODELS
from local_vits import MakeVit, parameters, with_four_heads
from torch import Tensor

import search.report
from objectives.cost.closed_form import cost_model
from objectives.latency.units import units_of
from spaces.branches import Branch
from spaces.factors import Factors
from spaces.operators.base import FoundSites
from spaces.operators.low_rank import LOW_RANK, rank_sites
from spaces.operators.registry import KINDS, OPERATORS, SEARCHED, SPACES, input_of
from spaces.sites import DROP, Kind, Role, SpaceName
from spaces.vit import describe


def test_every_kind_of_site_belongs_to_one_operator() -> None:
    defined = Counter(kind for spec in OPERATORS.values() for kind in spec.kinds)
    assert defined == Counter(set(get_args(Kind)) - {"tokens"}), "tokens are merged between branches, by no operator"


def test_people_are_told_what_the_sizes_of_every_kind_count() -> None:
    page = (Path(search.report.__path__[0]) / "templates" / "allocation.js").read_text(encoding="utf-8")
    assert all(entry.counts and f"{kind}: " in page for kind, entry in KINDS.items())


def test_every_operator_is_in_a_space_and_every_space_says_what_it_offers() -> None:
    assert set(get_args(SpaceName)) <= set(SPACES)
    assert all(set(offered) == set(get_args(Role)) for offered in SPACES.values())
    assert {name for offered in SPACES.values() for rivals in offered.values() for name in rivals} == set(OPERATORS) - {DROP}
    assert set(SEARCHED) == set(get_args(SpaceName)), "where every branch may be dropped"


@pytest.mark.parametrize("name", get_args(SpaceName))
def test_a_space_that_can_be_searched_has_all_parts(make_vit: MakeVit, name: str) -> None:
    model = with_four_heads(make_vit)
    space = describe(model, name)
    assert all(OPERATORS[operator.name].fill for rivals in space.branches.values() for operator in rivals)
    assert all(KINDS[site.kind].variants for site in space.sites)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("name", SPACES)
def test_every_site_reads_the_inputs_of_a_linear_layer(make_vit: MakeVit, kind: str, name: str) -> None:
    """Of as many inputs as the site can keep, heads and their widths times each other; low rank reads all inputs."""
    model = with_four_heads(make_vit, kind)
    hidden = 64 if kind == "gated FFN" else 128
    for site in describe(model, name, multiple=4).sites:
        if site.kind == "rows":
            continue
        inputs: int = model.get_submodule(input_of(model, site)).in_features  # type: ignore[assignment]
        expected = {"heads": 32, "query_key": 32, "value_output": 32, "ffn_hidden": hidden, "inputs": 32}
        expected["branch"] = 32 if site.branch.endswith("attn") else hidden
        assert inputs == (site.linear[1] if site.linear else expected[site.kind])


def test_a_toy_operator_needs_one_entry(make_vit: MakeVit, images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Low rank of the output projection alone: at rank 8, 32 x 32 weights become 8 x (32 + 32), for 17 tokens."""

    def projection(branch: Branch, multiple: int) -> FoundSites:
        sites, skipped = rank_sites(branch, multiple)
        return [site for site in sites if site.part == "proj"], skipped

    monkeypatch.setitem(OPERATORS, "toy", replace(LOW_RANK, name="toy", sites=projection, kinds={}))
    monkeypatch.setitem(SPACES, "toys", {"attention": ("toy",), "ffn": ()})
    model = make_vit()
    space = describe(model, "toys")
    assert [site.name for site in space.sites] == ["blocks.0.attn.proj", "blocks.1.attn.proj"]
    costs, allocation = cost_model(model, space), space.identity().replace({"blocks.1.attn.proj": 8})
    assert costs.dense["params"] - costs.count(allocation, "params") == 32 * 32 - 8 * 64
    assert costs.dense["macs"] - costs.count(allocation, "macs") == 17 * (32 * 32 - 8 * 64)
    built = Factors.compute(model, space, images.split(16)).build(allocation)  # type: ignore[no-untyped-call]
    assert parameters(built) == costs.count(allocation, "params")
    (unit,) = units_of(model, space, costs)
    assert (unit.operator, unit.parts, unit.branches) == ("toy", ("proj",), ("blocks.0.attn", "blocks.1.attn"))
