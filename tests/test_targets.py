import pytest

from search.targets import Reach, format_count, format_kept, parse_targets
from spaces.errors import TargetError

REACH: Reach = {"macs": (100_000_000, 1_000_000_000), "params": (1_000_000, 20_000_000)}


@pytest.mark.parametrize(
    ("text", "cost", "limit"),
    [
        ("flops=50%", "macs", 5e8),
        ("flops=0.5G", "macs", 5e8),
        ("macs=500m", "macs", 5e8),
        (" params = 11M ", "params", 11e6),
        ("flops=500000000", "macs", 5e8),
        ("params=100%", "params", 20e6),
    ],
)
def test_targets_are_understood(text: str, cost: str, limit: float) -> None:
    (target,) = parse_targets([text], REACH)
    assert (target.cost, target.limit) == (cost, limit)


def test_several_targets() -> None:
    assert len(parse_targets(["flops=50%,params=11M"], REACH)) == 2
    with pytest.raises(TargetError, match="two targets for macs"):
        parse_targets(["flops=50%", "macs=0.4G"], REACH)


@pytest.mark.parametrize("text", ["50%", "flops", "flops=", "flops=-5%", "flops=50 %%", "speed=2", "flops=1e9", ""])
def test_malformed_targets_are_refused(text: str) -> None:
    with pytest.raises(TargetError, match="not understood"):
        parse_targets([text], REACH)


@pytest.mark.parametrize("text", ["flops=5%", "flops=200%", "params=0.5M", "flops=0%"])
def test_unreachable_targets_name_the_range(text: str) -> None:
    with pytest.raises(TargetError, match=r"reaches from .*\(\d.*%\) to .*100%"):
        parse_targets([text], REACH)


def test_numbers_read_well() -> None:
    assert [format_count(value) for value in (0, 950, 1_234_567, 4.6e9, 999_900)] == ["0", "950", "1.23 M", "4.6 G", "1 M"]
    assert format_kept(0.5) == "50.0 % (−50.0 %)"
