"""Data sets that are streamed from shards, and hub data sets, on local files."""

import io
import json
import tarfile
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from local_images import fill, numbers_of, opened, picture, same, splits_of

from objectives.data.loaders import Data
from objectives.runtime.distributed import Group
from spaces.errors import DataError


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards of 10 images to train, one of 6 to search on, one of 4 to report on."""
    pytest.importorskip("webdataset")
    root = tmp_path_factory.mktemp("wds")
    content = {"train-0": range(10), "train-1": range(10, 20), "search-0": range(100, 106), "validation-0": range(200, 204)}
    for name, numbers in content.items():
        with tarfile.open(root / f"{name}.tar", "w") as tar:
            for number in numbers:
                encoded = io.BytesIO()
                picture(number).save(encoded, "PNG")
                for suffix, raw in (("png", encoded.getvalue()), ("cls", str(number % 2).encode())):
                    entry = tarfile.TarInfo(f"{number:03d}.{suffix}")
                    entry.size = len(raw)
                    tar.addfile(entry, io.BytesIO(raw))
    splits = {}
    for split in ("train", "search", "validation"):
        sizes = {f"{name}.tar": len(numbers) for name, numbers in content.items() if name.startswith(split)}
        lists = {"filenames": list(sizes), "shard_lengths": list(sizes.values())}
        splits[split] = {"name": split, "num_samples": sum(sizes.values()), **lists}
    (root / "_info.json").write_text(json.dumps({"splits": splits}))
    return root


def streamed(root: Path, **options: Any) -> Data:
    return opened(root, dataset="wds/local", **{"search_split": "search", "batch_size": 10, "workers": 1, **options})


@pytest.mark.slow
def test_shards_are_streamed_by_split(shards: Path) -> None:
    data = streamed(shards)
    train, search, test = splits_of(data)
    assert (sorted(train), search, test) == (list(range(20)), list(range(100, 106)), list(range(200, 204)))
    assert (data.size("train"), data.size("search"), data.num_classes) == (None, None, None)
    assert next(data.evaluation("test"))[1].tolist() == [0, 1, 0, 1]


@pytest.mark.slow
def test_stream_goes_on_past_an_epoch_and_follows_the_seed(shards: Path) -> None:
    data = streamed(shards, scale=(1.0, 1.0))
    runs = [[(images, labels) for images, labels in data.training(5, seed)] for seed in (0, 0, 1)]
    assert [len(labels) for _, labels in runs[0]] == [10] * 5
    assert same(runs[0], runs[1])
    assert not same(runs[0], runs[2])
    epochs = [numbers_of(runs[0][start : start + 2]) for start in (0, 2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(20))
    assert epochs[0] != epochs[1]


@pytest.mark.slow
def test_processes_share_the_batches_of_a_stream(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten images for three processes: three each. As they find it, timm would give each process a shard of its own."""
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    data = streamed(shards, batch_size=10, eval_batch_size=2, scale=(1.0, 1.0))
    whole = [numbers_of([batch]) for batch in data.training(3, seed=0)]
    assert sorted(whole[0] + whole[1]) == list(range(20))
    shares = [[numbers_of([batch]) for batch in data.training(3, 0, 9, Group(rank=rank, size=3))] for rank in range(3)]
    assert [[len(numbers) for numbers in share] for share in shares] == [[3] * 3] * 3
    assert len(set(chain(*(share[0] for share in shares)))) == 9
    pairs = [list(data.training(3, 0, group=Group(rank=rank, size=2))) for rank in range(2)]
    assert [sorted(numbers_of(both)) for both in zip(*pairs, strict=True)] == [sorted(numbers) for numbers in whole]
    turns = [numbers_of(data.evaluation("search", group=Group(rank=rank, size=2))) for rank in range(2)]
    assert turns == [[100, 101, 104, 105], [102, 103]]


@pytest.mark.slow
def test_every_epoch_shuffles_within_a_shard(shards: Path) -> None:
    batches = streamed(shards, train_split="train-0.tar|10", scale=(1.0, 1.0)).training(3, seed=0)
    epochs = [numbers_of([batch]) for batch in batches]
    assert [sorted(epoch) for epoch in epochs] == [list(range(10))] * 3
    assert epochs[0] != epochs[1] != epochs[2]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")  # on a machine of two cores
def test_more_workers_than_shards_lose_no_image(shards: Path) -> None:
    data = streamed(shards, workers=3)
    assert sorted(numbers_of(data.evaluation("search"))) == list(range(100, 106))
    assert [len(labels) for _, labels in data.training(5, seed=0)] == [10] * 5


@pytest.mark.slow
def test_stream_calibrates_on_as_many_images_as_asked(shards: Path) -> None:
    data = streamed(shards, calibration_size=13, eval_batch_size=5)
    numbers = numbers_of(data.calibration())
    assert len(numbers) == 13
    assert numbers == numbers_of(data.calibration())
    assert numbers_of(data.calibration(6)) == numbers[:6]


def test_stream_needs_a_search_split_of_its_own(shards: Path) -> None:
    with pytest.raises(DataError, match=r"streamed.*--search-split"):
        streamed(shards, search_split=None)
    with pytest.raises(DataError, match="train and search splits are the same"):
        streamed(shards, search_split="train")


def test_unknown_shard_split_is_refused(shards: Path) -> None:
    with pytest.raises(DataError, match="split 'serch'"):
        streamed(shards, search_split="serch")


@pytest.mark.slow
def test_hub_data_set_on_local_files(tmp_path: Path) -> None:
    """A folder in the layout of the `datasets` package; --data-dir is its cache."""
    pytest.importorskip("datasets")
    fill(tmp_path / "set" / "train", {"cat": range(10), "dog": range(10, 20)})
    fill(tmp_path / "set" / "validation", {"cat": [100, 101], "dog": [102]})
    data = opened(tmp_path / "cache", dataset=f"hfds/{tmp_path / 'set'}")
    train, search, test = splits_of(data)
    assert (len(search), sorted(train + search), test) == (2, list(range(20)), [100, 101, 102])
    assert data.num_classes == 2
    assert next(data.evaluation("test"))[1].tolist() == [0, 0, 1]
