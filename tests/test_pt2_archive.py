"""Archives of torch.export that would run code, read files or take memory: refused, and one whose weights are whole is read."""

import io
import json
import logging
import os
import pickle
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from local_folders import Folder, changed, write_folder
from local_vits import MakeVit
from torch import Tensor

from objectives.deploy.activations import activations
from objectives.deploy.formats import open_format
from objectives.deploy.pt2_archive import load_archive
from spaces.errors import CheckpointError
from spaces.folder.description import fingerprint_of

PROGRAM, WEIGHTS, CONSTANTS = (
    "models/model.json", "data/weights/model_weights_config.json", "data/constants/model_constants_config.json",
)  # fmt: skip
Members = dict[str, bytes]
Attack = Callable[[Members, Path], None]


@pytest.fixture(scope="module")
def original(make_vit: MakeVit, images: Tensor, tmp_path_factory: pytest.TempPathFactory) -> Folder:
    return write_folder(tmp_path_factory.mktemp("pt2") / "whole", make_vit, images, formats=("safetensors", "pt2"))


@pytest.fixture(scope="module")
def members(original: Folder) -> Mapping[str, bytes]:
    with zipfile.ZipFile(original.path / "model.pt2") as archive:
        return {entry.filename.partition("/")[2]: archive.read(entry) for entry in archive.infolist()}


def written(path: Path, members: Mapping[str, bytes], packing: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", packing) as archive:
        for name, content in members.items():
            archive.writestr(f"model/{name}", content)
    return path


class Poison:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def saved(poison: Poison) -> bytes:
    content = io.BytesIO()
    torch.save(poison, content)
    return content.getvalue()


def edited(members: Members, name: str, change: Callable[[Any], object]) -> None:
    content = json.loads(members[name])
    change(content)
    members[name] = json.dumps(content).encode()


def in_graph(members: Members, change: Callable[[Any], object]) -> None:
    edited(members, PROGRAM, lambda program: change(program["graph_module"]["graph"]))


def pickled_weight(members: Members, mark: Path) -> None:
    members["data/weights/weight_0"] = saved(Poison(mark))
    edited(members, WEIGHTS, lambda table: next(iter(table["config"].values())).update(use_pickle=True))


def pickled_inputs(members: Members, mark: Path) -> None:
    members["data/sample_inputs/model.pt"] = saved(Poison(mark))


def weights_of_the_old_form(members: Members, mark: Path) -> None:
    members["data/weights/model.pt"] = saved(Poison(mark))


def constants_of_the_old_form(members: Members, mark: Path) -> None:
    members["data/constants/model.pt"] = saved(Poison(mark))


def pickled_constant(members: Members, mark: Path) -> None:
    members["data/constants/tensor_0"] = saved(Poison(mark))
    entry = {"path_name": "tensor_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
    edited(members, CONSTANTS, lambda table: table["config"].update(more=entry))


def opaque_object(members: Members, mark: Path) -> None:
    members["data/constants/opaque_obj_0"] = pickle.dumps(Poison(mark))
    entry = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
    edited(members, CONSTANTS, lambda table: table["config"].update(more=entry))


def symbolic_size(members: Members, mark: Path) -> None:
    code = f"__import__('os').mkdir({str(mark)!r})"
    in_graph(members, lambda graph: graph["tensor_values"]["images"]["sizes"][0]["as_expr"].update(expr_str=code))


def guard(members: Members, mark: Path) -> None:
    code = f"__import__('os').mkdir({str(mark)!r}) is None"
    edited(members, PROGRAM, lambda program: program.update(guards_code=[code]))


def function_of_a_module(members: Members, mark: Path) -> None:
    text = {"name": "", "arg": {"as_string": str(mark)}, "kind": 1}
    node = {"target": "torch.os.mkdir", "inputs": [text], "outputs": [{"as_none": True}], "metadata": {}, "name": "more"}
    in_graph(members, lambda graph: graph["nodes"].append(node))


def file_of_a_tensor(members: Members, mark: Path) -> None:
    """aten's own operator that makes a file."""
    given = {"filename": {"as_string": str(mark)}, "shared": {"as_bool": True}, "size": {"as_int": 1}}
    inputs = [{"name": name, "arg": arg, "kind": 1} for name, arg in given.items()]
    node = {"target": "torch.ops.aten.from_file.default", "inputs": inputs, "metadata": {}, "name": "more"}

    def add(graph: Any) -> None:
        graph["tensor_values"]["more"] = graph["tensor_values"]["p_model_cls_token"]
        graph["nodes"].append({**node, "outputs": [{"as_tensor": {"name": "more"}}]})

    in_graph(members, add)


def name_that_is_code(members: Members, mark: Path) -> None:
    text = members[PROGRAM].decode()
    members[PROGRAM] = text.replace('"images"', json.dumps(f"images=__import__('os').mkdir({str(mark)!r})")).encode()


def import_for_a_tree(members: Members, mark: Path) -> None:
    """Of a module in the folder that a user works in."""
    (mark.parent / "payload_of_tree.py").write_text(f"import os; os.mkdir({str(mark)!r})")
    context = {"default_factory_module": "payload_of_tree", "default_factory_name": "os", "dict_context": []}
    leaf = {"type": "collections.defaultdict", "context": context, "children_spec": []}
    called = lambda program: program["graph_module"]["module_call_graph"][0]["signature"]  # noqa: E731
    edited(members, PROGRAM, lambda program: called(program).update(out_spec=json.dumps([1, leaf])))


ATTACKS: tuple[Attack, ...] = (
    pickled_weight, pickled_inputs, weights_of_the_old_form, constants_of_the_old_form, pickled_constant, opaque_object,
    symbolic_size, guard, function_of_a_module, file_of_a_tensor, name_that_is_code, import_for_a_tree,
)  # fmt: skip


# To the version of torch that the tests run with.
HARMLESS = (guard, function_of_a_module, *((pickled_weight, opaque_object) if torch.__version__.startswith("2.11.") else ()))


def opened_by_torch(path: Path) -> None:
    try:
        torch.export.load(path).module()(torch.zeros(1, 3, 16, 16))
    except BaseException:  # after the mark was made
        return


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_no_code_of_an_archive_runs(
    members: Mapping[str, bytes], original: Folder, tmp_path: Path, attack: Attack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    mark, evil = tmp_path / "mark", dict(members)
    attack(evil, mark)
    path = written(tmp_path / "model.pt2", evil)
    if attack is import_for_a_tree:  # how the program is called is written anew
        load_archive(path).module()(original.images(2))
    else:
        with pytest.raises(CheckpointError, match="is refused") as caught:
            load_archive(path)
        assert "\n" not in str(caught.value)
    assert not mark.exists()
    sys.modules.pop("payload_of_tree", None)
    opened_by_torch(path)
    assert mark.exists() or attack in HARMLESS, "the attack would have worked"


def test_the_same_outputs_as_by_torch_itself(original: Folder) -> None:
    path, pictures = original.path / "model.pt2", original.images(3)
    assert torch.equal(load_archive(path).module()(pictures), torch.export.load(path).module()(pictures))


@pytest.mark.parametrize(
    "name",
    [
        "data/aotinductor/model/payload.so", "data/aotinductor/model/payload.cubin", "extra/note.txt", "models/other.json",
        "data/weights/../weight_1", "/data/weights/weight_9", "version", "data/constants/custom_obj_0",
        "data/executorch/model.pte",
    ],
)  # fmt: skip
def test_members_that_an_export_does_not_write_are_refused(members: Mapping[str, bytes], tmp_path: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match="it has the member 'model/"):
        load_archive(written(tmp_path / "model.pt2", {**members, name: b"x"}))


def test_members_that_are_packed_twice_or_missing_are_refused(members: Mapping[str, bytes], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is compressed or encrypted"):
        load_archive(written(tmp_path / "packed.pt2", members, zipfile.ZIP_DEFLATED))
    twice = written(tmp_path / "twice.pt2", members)
    with zipfile.ZipFile(twice, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("model/models/model.json", "{}")
    with pytest.raises(CheckpointError, match="two members of one name"):
        load_archive(twice)
    with pytest.raises(CheckpointError, match=r"lacks the member 'models/model\.json'"):
        load_archive(written(tmp_path / "less.pt2", {key: value for key, value in members.items() if key != PROGRAM}))
    for content in (b"", b"PK", b"\x80\x04", pickle.dumps({}), bytes(1000)):
        (tmp_path / "none.pt2").write_bytes(content)
        with pytest.raises(CheckpointError, match="cannot be read as an archive"):
            load_archive(tmp_path / "none.pt2")


def test_a_size_that_is_not_in_the_file_is_refused(members: Mapping[str, bytes], tmp_path: Path) -> None:
    """torch makes zeros of any shape where a member is empty, and believes what a zip file says of itself."""

    def of_one(table: Any) -> dict[str, Any]:
        return dict.__getitem__(next(iter(table["config"].values())), "tensor_meta")

    huge = [{"as_int": 10**6}, {"as_int": 10**6}]
    strides = [{"as_int": 10**6}, {"as_int": 1}]
    for content in (b"", members["data/weights/weight_0"]):
        evil = {**members, "data/weights/weight_0": content}
        edited(
            evil, WEIGHTS, lambda table: next(iter(table["config"].values()))["tensor_meta"].update(sizes=huge, strides=strides)
        )
        with pytest.raises(CheckpointError, match="a weight of 1,000,000,000,000 numbers is not what its member"):
            load_archive(written(tmp_path / "model.pt2", evil))
    path = written(tmp_path / "lies.pt2", members)
    lying = bytearray(path.read_bytes())
    at = lying.index(b"PK\x01\x02")  # the first entry of the directory; sizes are 20 and 24 bytes behind
    lying[at + 20 : at + 28] = (2**31).to_bytes(4, "little") * 2
    path.write_bytes(lying)
    with pytest.raises(CheckpointError, match="its members say to be larger than the file"):
        load_archive(path)


def test_a_program_that_computes_more_than_the_model_is_refused(
    members: Mapping[str, bytes], original: Folder, tmp_path: Path
) -> None:
    """Ten thousand millions of numbers, of which no weight says anything."""
    evil = dict(members)
    size = {"name": "size", "arg": {"as_ints": [10**5, 10**5]}, "kind": 1}
    node = {"target": "torch.ops.aten.zeros.default", "inputs": [size], "outputs": [{"as_tensor": {"name": "more"}}]}

    def add(graph: Any) -> None:
        sizes = [{"as_int": 10**5}, {"as_int": 10**5}]
        like = graph["tensor_values"]["p_model_cls_token"]
        graph["tensor_values"]["more"] = {**like, "sizes": sizes, "strides": [{"as_int": 10**5}, {"as_int": 1}]}
        graph["nodes"].insert(0, {**node, "metadata": {}, "name": "more"})

    in_graph(evil, add)
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes((original.path / name).read_bytes())
    written(folder / "model.pt2", evil)
    changed(folder, lambda config: config["files"].update({"model.pt2": fingerprint_of(folder / "model.pt2")}))
    with pytest.raises(CheckpointError, match=r"computes 10,000,\d+,\d+ numbers for 1 image"):
        open_format(folder, "pt2")


def test_of_a_program_that_does_not_run_torch_logs_no_traceback(
    members: Mapping[str, bytes], tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("torch._subclasses.fake_tensor"), "handlers", [caplog.handler])
    evil = dict(members)

    def split_elsewhere(graph: Any) -> None:
        node = next(entry for entry in graph["nodes"] if entry["target"] == "torch.ops.aten.split_with_sizes.default")
        next(entry for entry in node["inputs"] if entry["name"] == "split_sizes")["arg"]["as_ints"][0] += 1

    in_graph(evil, split_elsewhere)
    model = load_archive(written(tmp_path / "model.pt2", evil)).module()
    with pytest.raises(RuntimeError, match="split_with_sizes expects"):
        activations(model, (1, 3, 16, 16))
    assert not [entry for entry in caplog.records if entry.levelno >= logging.ERROR]


def test_numbers_that_operators_give_are_counted_by_hand() -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 2, stride=2, bias=False), torch.nn.ReLU(), torch.nn.AvgPool2d(2))
    assert activations(model, (1, 3, 8, 8)) == 3 * 8 * 8 + 4 * 4 * 4 + 4 * 4 * 4 + 4 * 2 * 2


@pytest.mark.parametrize(
    "target",
    [
        "torch.ops.aten.linear", "torch.ops.prims.add.default", "_operator.methodcaller", "math.exp", "#x:y", None, 3,
        "torch.ops.aten._print.default", "torch.ops.higher_order.cond", "torch.ops.aten.add.__class__",
    ],
)  # fmt: skip
def test_operators_that_no_vision_transformer_needs_are_refused(
    members: Mapping[str, bytes], tmp_path: Path, target: object
) -> None:
    evil = dict(members)
    in_graph(evil, lambda graph: graph["nodes"][-1].update(target=target))
    with pytest.raises(CheckpointError, match="which no vision transformer needs"):
        load_archive(written(tmp_path / "model.pt2", evil))
