"""What the serialized program of a torch.export archive may say: it is written anew from what is known to be harmless.

Torch's reader trusts this text. It evaluates symbolic sizes and guards as Python, looks operators up by their path in
`torch` and `operator`, imports what a tree's description names and makes Python code of the names of values. So nothing of a
file reaches it as it was written: names, numbers and the operators of vision transformers are copied, the rest is refused or,
where it only informs, left out.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from torch.utils._pytree import tree_structure, treespec_dumps

from spaces.errors import shown

# Of aten; nothing that reads or writes files.
_ATEN = frozenset((
    "_assert_scalar", "_assert_tensor_metadata", "_unsafe_view", "_upsample_bicubic2d_aa", "_upsample_bilinear2d_aa", "abs",
    "adaptive_avg_pool2d", "add", "add_", "addmm", "alias", "amax", "amin", "arange", "argmax", "avg_pool2d", "batch_norm",
    "bmm", "broadcast_to", "cat", "chunk", "clamp", "clamp_min", "clone", "constant_pad_nd", "contiguous", "conv2d",
    "copy_", "cos", "cumsum", "detach", "detach_", "div", "div_", "dropout", "einsum", "elu", "eq", "erf", "exp", "expand",
    "expand_as", "flatten", "flip", "floor", "floor_divide", "full", "full_like", "gather", "ge", "gelu", "group_norm",
    "gt", "hardsigmoid", "hardswish", "index", "index_select", "layer_norm", "le", "leaky_relu", "lift_fresh_copy",
    "linalg_vector_norm", "linear", "log", "log_softmax", "logical_and", "logical_not", "logical_or", "lt", "masked_fill",
    "matmul", "max", "max_pool2d", "maximum", "mean", "meshgrid", "min", "minimum", "mish", "mm", "movedim", "mul", "mul_",
    "narrow", "native_group_norm", "native_layer_norm", "ne", "neg", "new_ones", "new_zeros", "norm", "ones", "ones_like",
    "outer", "pad", "permute", "pow", "reciprocal", "relu", "relu6", "relu_", "repeat", "repeat_interleave", "reshape",
    "reshape_as", "rms_norm", "roll", "rsqrt", "rsub", "scalar_tensor", "scaled_dot_product_attention", "select", "sigmoid",
    "silu", "sin", "slice", "softmax", "softplus", "split", "split_with_sizes", "sqrt", "square", "squeeze", "stack", "sub",
    "sub_", "sum", "swapaxes", "sym_constrain_range_for_size", "sym_numel", "sym_size", "sym_stride", "t", "tanh", "tile",
    "to", "topk", "transpose", "type_as", "unbind", "unflatten", "unfold", "unsqueeze", "upsample_bicubic2d",
    "upsample_bilinear2d", "upsample_nearest2d", "var", "var_mean", "view", "view_as", "where", "zeros", "zeros_like",
))  # fmt: skip
_SIZES = frozenset(("add", "sub", "mul", "floordiv", "mod", "neg", "eq", "ne", "lt", "le", "gt", "ge"))  # of `operator`
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,199}")
_OVERLOAD = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,99}")
_PATH = re.compile(r"[A-Za-z0-9_]{1,99}(\.[A-Za-z0-9_]{1,99}){0,19}")
_SYMBOL = r"(?:s\d{1,6}|Symbol\('s\d{1,6}', (?:positive=True, integer=True|integer=True, positive=True)\))"
_SIZE = re.compile(rf"{_SYMBOL}|\d{{1,12}}\*{_SYMBOL}|Mul\(Integer\(\d{{1,12}}\), {_SYMBOL}\)")
_WORD = re.compile(r"[A-Za-z0-9_,.> -]{0,100}")  # an interpolation, the indices of an einsum
_LARGEST = 2**62
_VALUES = ("tensor_values", "sym_int_values", "sym_bool_values")
_FEWER = ("sym_float_values", "custom_obj_values")  # of which a vision transformer has none


class RefusedError(ValueError):
    """A part of an archive is not what an export of this project writes; the message says which."""


def harmless(program: Any) -> dict[str, Any]:
    """A program as torch's reader may get it.

    Args:
        program: parsed JSON of an archive's models/model.json.

    Raises:
        RefusedError: it has another operator, kind of argument, symbolic size or input than a vision transformer's, or is no
            program.
    """
    try:
        module = program["graph_module"]
        graph, signature = module["graph"], module["signature"]
        if program.get("guards_code") or any(graph.get(name) for name in _FEWER):
            raise RefusedError("it has guards, which are Python code, or custom objects")
        return {
            "graph_module": {
                "graph": _graph(graph),
                "signature": {
                    "input_specs": [_spec(entry, _INPUTS) for entry in signature["input_specs"]],
                    "output_specs": [_spec(entry, _OUTPUTS) for entry in signature["output_specs"]],
                },
                "module_call_graph": [{"fqn": "", "signature": _called(signature["input_specs"])}],
                "metadata": {},
                "treespec_namedtuple_fields": {},
            },
            "opset_version": {_name(key): _number(value) for key, value in program["opset_version"].items()},
            "range_constraints": {_name(key): _range(value) for key, value in program["range_constraints"].items()},
            "schema_version": {key: _number(program["schema_version"][key]) for key in ("major", "minor")},
            "verifiers": [_name(value) for value in program.get("verifiers", [])],
            "torch_version": "",
            "guards_code": [],
        }
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        if isinstance(error, RefusedError):
            raise
        raise RefusedError(f"it is no program ({type(error).__name__}: {shown(str(error))})") from error


def tensor(meta: Mapping[str, Any], size: Callable[[Any], Any]) -> dict[str, Any]:
    """Type, shape and strides of a tensor of the CPU; `size` checks an entry of a shape."""
    return {
        "dtype": _number(meta["dtype"]),
        "sizes": [size(entry) for entry in meta["sizes"]],
        "requires_grad": meta["requires_grad"] is True,
        "device": _device(meta["device"]),
        "strides": [size(entry) for entry in meta["strides"]],
        "storage_offset": size(meta["storage_offset"]),
        "layout": _number(meta["layout"]),
    }


def whole(entry: Any) -> dict[str, int]:
    """A size that is a number and no symbol."""
    value = _only(entry, "as_int")
    if _number(value) < 0:
        raise RefusedError(f"a size of {value}")
    return {"as_int": value}


def path(text: Any) -> str:
    """The name of a parameter: `model.blocks.0.norm1.weight`."""
    if not isinstance(text, str) or not _PATH.fullmatch(text) or "__" in text:
        raise RefusedError(f"a parameter of the name {shown(text)}")
    return text


def _of_values(meta: Any) -> dict[str, Any]:
    return tensor(meta, _size)


def _graph(graph: Mapping[str, Any]) -> dict[str, Any]:
    checks = dict(zip(_VALUES, (_of_values, _size, _truth), strict=True))
    return {
        "inputs": [_argument(entry) for entry in graph["inputs"]],
        "outputs": [_argument(entry) for entry in graph["outputs"]],
        "nodes": [_node(entry) for entry in graph["nodes"]],
        **{key: {_name(name): check(value) for name, value in graph.get(key, {}).items()} for key, check in checks.items()},
        **{key: {} for key in _FEWER},
        "is_single_tensor_return": graph.get("is_single_tensor_return") is True,
    }


def _node(node: Mapping[str, Any]) -> dict[str, Any]:
    given = [
        {"name": _name(entry["name"]), "arg": _argument(entry["arg"]), "kind": _number(entry.get("kind", 1))}
        for entry in node["inputs"]
    ]
    return {
        "target": _operator(node["target"]),
        "inputs": given,
        "outputs": [_argument(entry) for entry in node["outputs"]],
        "metadata": {},
        "is_hop_single_tensor_return": None,
        "name": None if node.get("name") is None else _name(node["name"]),
    }


def _operator(target: Any) -> str:
    parts = target.split(".") if isinstance(target, str) else []
    known = (
        len(parts) == 5 and parts[:3] == ["torch", "ops", "aten"] and parts[3] in _ATEN and _OVERLOAD.fullmatch(parts[4])
    ) or (len(parts) == 2 and parts[0] == "_operator" and parts[1] in _SIZES)
    if not known:
        raise RefusedError(f"the operator {shown(target)}, which no vision transformer needs")
    return str(target)


def _argument(argument: Any) -> dict[str, Any]:
    (kind,) = argument
    if kind not in _ARGUMENTS:
        raise RefusedError(f"an argument of the kind {shown(kind)}")
    return {kind: _ARGUMENTS[kind](argument[kind])}


def _spec(spec: Any, kinds: Mapping[str, str | None]) -> dict[str, Any]:
    (kind,) = spec
    if kind not in kinds:
        raise RefusedError(f"an input or output of the kind {shown(kind)}")
    key, given = kinds[kind], spec[kind]
    if key is None:
        return {kind: {"arg": {"as_tensor": _named(_only(given["arg"], "as_tensor"))}}}
    more = {"persistent": given["persistent"] is True} if kind == "buffer" else {}
    return {kind: {"arg": _named(given["arg"]), key: path(given[key]), **more}}


def _called(specs: list[Any]) -> dict[str, Any]:
    """How the program is called: with one tensor, which gives one; what it says of itself is not read."""
    (images,) = [spec["user_input"]["arg"]["as_tensor"]["name"] for spec in specs if "user_input" in spec]
    trees = {"in_spec": treespec_dumps(tree_structure(((0,), {}))), "out_spec": treespec_dumps(tree_structure(0))}
    return {"inputs": [], "outputs": [], **trees, "forward_arg_names": [_name(images)]}


def _size(entry: Any) -> dict[str, Any]:
    """A number, or a multiple of the number of images; a hint is a number."""
    if "as_expr" not in entry:
        return whole(entry)
    given = _only(entry, "as_expr")
    if not isinstance(given["expr_str"], str) or not _SIZE.fullmatch(given["expr_str"]):
        raise RefusedError(f"the symbolic size {shown(given['expr_str'])}, which torch would run as Python")
    return {"as_expr": {"expr_str": given["expr_str"], "hint": None if given.get("hint") is None else whole(given["hint"])}}


def _truth(entry: Any) -> dict[str, bool]:
    return {"as_bool": _bool(_only(entry, "as_bool"))}


def _device(device: Mapping[str, Any]) -> dict[str, Any]:
    if device["type"] != "cpu":
        raise RefusedError(f"a tensor on the device {shown(device['type'])}")
    return {"type": "cpu", "index": None}


def _range(limits: Mapping[str, Any]) -> dict[str, int | None]:
    return {key: None if limits[key] is None else _number(limits[key]) for key in ("min_val", "max_val")}


def _named(value: Mapping[str, Any]) -> dict[str, str]:
    return {"name": _name(value["name"])}


def _optional(value: Any) -> dict[str, Any]:
    return {"as_tensor": _named(value["as_tensor"])} if "as_tensor" in value else {"as_none": _bool(_only(value, "as_none"))}


def _symbolic(value: Any) -> dict[str, Any]:
    (kind,) = value
    return {"as_name": _name(value[kind])} if kind == "as_name" else {"as_int": _number(_only(value, "as_int"))}


def _only(value: Any, key: str) -> Any:
    if list(value) != [key]:
        raise RefusedError(f"{shown(value)} in place of {key}")
    return value[key]


def _name(text: Any) -> str:
    if not isinstance(text, str) or not _NAME.fullmatch(text) or text.startswith("__"):
        raise RefusedError(f"the name {shown(text)}")
    return text


def _word(text: Any) -> str:
    if not isinstance(text, str) or not _WORD.fullmatch(text):
        raise RefusedError(f"the text {shown(text)}")
    return text


def _number(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) > _LARGEST:
        if value in (2**63 - 1, -(2**63)) and isinstance(value, int):  # torch's own word for "to the end"
            return value
        raise RefusedError(f"the number {shown(value)}")
    return value


def _float(value: Any) -> float | str:
    if value in ("Infinity", "-Infinity", "NaN"):  # as torch writes them
        return str(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
        raise RefusedError(f"the number {shown(value)}")
    return float(value)


def _bool(value: Any) -> bool:
    if not isinstance(value, bool):
        raise RefusedError(f"{shown(value)} in place of true or false")
    return value


def _list(check: Callable[[Any], Any]) -> Callable[[Any], list[Any]]:
    return lambda values: [check(value) for value in values]


_INPUTS = {
    "user_input": None,
    "parameter": "parameter_name",
    "buffer": "buffer_name",
    "tensor_constant": "tensor_constant_name",
}
_OUTPUTS = {"user_output": None}
_ARGUMENTS: dict[str, Callable[[Any], Any]] = {
    "as_none": _bool, "as_tensor": _named, "as_tensors": _list(_named), "as_optional_tensors": _list(_optional),
    "as_int": _number, "as_ints": _list(_number), "as_float": _float, "as_floats": _list(_float), "as_bool": _bool,
    "as_bools": _list(_bool), "as_string": _word, "as_sym_int": _symbolic, "as_sym_ints": _list(_symbolic),
    "as_scalar_type": _number, "as_memory_format": _number, "as_layout": _number, "as_device": _device,
}  # fmt: skip
