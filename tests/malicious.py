"""Malicious versions that an attacker with write access to the repository might publish, and their expected errors.

Each is an edit of a version of the tiny model. The digests in the manifest are updated afterwards, as an attacker would
do, except in cases about the manifest or the files themselves.
"""

import itertools
import json
import os
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from contract.errors import DigestError, InvalidVersion, LabelnextError, LoweringError, ManifestError, UnsafeGraph
from contract.versions.version import (
    BACKBONE_WEIGHTS_FILE,
    INT8_BACKBONE_FILE,
    MANIFEST_FILE,
    MODEL_FILE,
    PROBE_FILE,
    digest_file,
)

OPSETS = [helper.make_opsetid("", 18)]


@dataclass(frozen=True)
class Malicious:
    """An edit of a version's folder, and the error that it must cause."""

    name: str
    edit: Callable[[Path], object]
    error: type[LabelnextError]
    updates_digests: bool = True
    """Whether the manifest's digests are updated after the edit."""
    detected_by: str = "contract"
    """"engine" if the error occurs only when the graph runs, else "contract"."""

    def apply(self, folder):
        self.edit(folder)
        if self.updates_digests:
            update_digests(folder)


def update_digests(folder):
    """Update the digests in the manifest to those of the files."""

    def update(document):
        existing = [name for name in document["files"] if (folder / name).is_file()]
        document["files"] |= {name: asdict(digest_file(folder / name)) for name in existing}

    edit_manifest(folder, update)


def edit_manifest(folder, change):
    document = json.loads((folder / MANIFEST_FILE).read_text())
    change(document)
    (folder / MANIFEST_FILE).write_text(json.dumps(document))


# Graphs


def graph_case(name, change, error=UnsafeGraph, *, file=MODEL_FILE, detected_by="contract"):
    """Return a case of a graph edited by `change`, which gets the ModelProto without external data."""

    def edit(folder):
        model = onnx.load(folder / file, load_external_data=False)
        change(model)
        (folder / file).write_bytes(model.SerializeToString())

    return Malicious(name, edit, error, detected_by=detected_by)


def find_weight(model):
    return next(tensor for tensor in model.graph.initializer if tensor.name == "w1")


def set_external_data(tensor, **entries):
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    del tensor.external_data[:]
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=str(value))


def move_weights(location, **entries):
    return lambda model: set_external_data(
        find_weight(model), **{"location": location, "offset": 0, "length": 1024, **entries}
    )


def add_external_entry(key, value, *, first=False):
    def change(model):
        entries = [(entry.key, entry.value) for entry in find_weight(model).external_data]
        del find_weight(model).external_data[:]
        for entry_key, entry_value in [(key, value), *entries] if first else [*entries, (key, value)]:
            find_weight(model).external_data.add(key=entry_key, value=entry_value)

    return change


def make_external_tensor(location="/etc/passwd"):
    tensor = TensorProto(name="outside", data_type=TensorProto.FLOAT, dims=[4])
    set_external_data(tensor, location=location, offset=0, length=16)
    return tensor


def add_short_tensor(dims):
    """Add a tensor that claims this shape, but has four bytes of data."""

    def change(model):
        model.graph.initializer.append(
            TensorProto(name="short", data_type=TensorProto.FLOAT, dims=dims, raw_data=bytes(4)),
        )

    return change


def prepend_nodes(*nodes):
    def change(model):
        all_nodes = [*nodes, *model.graph.node]
        del model.graph.node[:]
        model.graph.node.extend(all_nodes)

    return change


def branch_body(initializer=None):
    """Return the graph of a branch, which has no inputs and one output."""
    tensor = initializer or numpy_helper.from_array(np.zeros(4, np.float32), "outside")
    node = helper.make_node("Identity", ["outside"], ["inside"])
    output = helper.make_tensor_value_info("inside", TensorProto.FLOAT, [4])
    return helper.make_graph([node], "body", [], [output], [tensor])


def if_node(body):
    return helper.make_node("If", ["training"], ["branched"], then_branch=body, else_branch=body)


def endless_loop():
    inputs = [
        helper.make_tensor_value_info("i", TensorProto.INT64, []),
        helper.make_tensor_value_info("condition", TensorProto.BOOL, []),
    ]
    keep_condition = helper.make_node("Identity", ["condition"], ["unchanged"])
    output = helper.make_tensor_value_info("unchanged", TensorProto.BOOL, [])
    body = helper.make_graph([keep_condition], "body", inputs, [output])
    return helper.make_node("Loop", ["", "training"], [], body=body)


def add_functions(*functions):
    def change(model):
        model.functions.extend(functions)
        model.opset_import.append(helper.make_opsetid("own", 1))
        prepend_nodes(helper.make_node(functions[-1].name, ["w1"], ["called"], domain="own"))(model)

    return change


def make_function(name, called, times=1, *, domain="own"):
    """Return a function that calls an operator or another function several times in a row."""
    tensors = ["x", *(f"t{i}" for i in range(times - 1)), "y"]
    nodes = [helper.make_node(called, [a], [b], domain=domain) for a, b in itertools.pairwise(tensors)]
    return helper.make_function("own", name, ["x"], ["y"], nodes, [*OPSETS, helper.make_opsetid("own", 1)])


def add_function_with_external_default(model):
    function = make_function("f", "Identity", domain="")
    function.attribute_proto.append(helper.make_attribute("default", make_external_tensor()))
    add_functions(function)(model)


def add_external_sparse_tensor(model):
    model.graph.sparse_initializer.add(dims=[4]).values.CopyFrom(make_external_tensor())


def add_external_training_info(model):
    model.training_info.add().initialization.initializer.append(make_external_tensor())


def first_dropout(model):
    return next(node for node in model.graph.node if node.op_type == "Dropout")


def set_unknown_type(model):
    find_weight(model).data_type = 99


def gather_out_of_range(model):
    model.graph.initializer.append(numpy_helper.from_array(np.array([10**9]), "far"))
    prepend_nodes(helper.make_node("Gather", ["w1", "far"], ["gathered"]))(model)
    next(node for node in model.graph.node if "w2" in node.input).input[1] = "gathered"


# Files


def replace_file(file, create):
    """Remove a file, and call `create` with its path."""

    def edit(folder):
        (folder / file).unlink()
        create(folder / file)

    return edit


def replace_by_link(file):
    """Move a file out of the repository, and link to it."""

    def edit(folder):
        moved = folder.parent.parent / "outside" / Path(file).name
        moved.parent.mkdir(exist_ok=True)
        shutil.move(folder / file, moved)
        (folder / file).symlink_to(moved)

    return edit


def replace_probe_by_empty_pipe(folder):
    replace_file(PROBE_FILE, os.mkfifo)(folder)
    edit_manifest(folder, lambda document: document["files"][PROBE_FILE].update(size_bytes=0))


def file_case(name, edit, error=DigestError):
    return Malicious(name, edit, error, updates_digests=False)


# Manifests


def manifest_case(name, error=ManifestError, **fields):
    return file_case(name, lambda folder: edit_manifest(folder, lambda document: document.update(fields)), error)


def file_list_case(name, change, error=ManifestError):
    return file_case(name, lambda folder: edit_manifest(folder, lambda document: change(document["files"])), error)


def manifest_text_case(name, text):
    return file_case(name, lambda folder: (folder / MANIFEST_FILE).write_bytes(text), ManifestError)


def list_file(name):
    return lambda listed: listed.update({name: listed[BACKBONE_WEIGHTS_FILE]})


# Probes


def probe_case(name, change):
    def edit(folder):
        with np.load(folder / PROBE_FILE) as archive:
            arrays = dict(archive)
        change(folder / PROBE_FILE, arrays)

    return Malicious(name, edit, DigestError)


def save_one_array(path, arrays):
    with path.open("wb") as file:
        np.save(file, arrays["images"])


def change_arrays(**changed):
    return lambda path, arrays: np.savez(path, **{**arrays, **changed})


def claim_a_terabyte(path, arrays):
    """Write an archive whose directory claims a member of a terabyte."""
    np.savez(path, **arrays)
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = b"rewritten"
        archive.getinfo("images.npy").file_size = 2**40


def claim_false_shape(path, arrays):
    """Write an array whose header claims a trillion images."""
    np.savez(path, **arrays)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    header = members["images.npy"]
    text = header[10 : 10 + header[8]].decode()
    edited = text.replace("(4, 8, 8, 3)", "(999999999999, 8, 8, 3)").rstrip()
    members["images.npy"] = header[:10] + edited.ljust(header[8] - 1).encode() + b"\n" + header[10 + header[8] :]
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def int8_case(name, change):
    """Return a case of an edited int8 backbone; a server then serves the version in float32."""
    return graph_case(name, change, file=INT8_BACKBONE_FILE)


ELSEWHERE = (
    *("/etc/passwd", "../../../etc/passwd", "file:///etc/passwd", "*/_ORT_MEM_ADDR_/*", PROBE_FILE),
    *(f"../20260102T030405678Z-0a1b2c/{BACKBONE_WEIGHTS_FILE}", f"./{BACKBONE_WEIGHTS_FILE}"),
)
"""Forbidden locations of weights: outside, in memory, in another file or version, or spelt differently."""
INVALID_NAMES = ("../CURRENT", "/etc/passwd", "..\\CURRENT", "x" * 256, "a\0b")
MALICIOUS = (
    *(graph_case(f"weights-at-{location}", move_weights(location)) for location in ELSEWHERE),
    graph_case("weights-without-location", lambda model: set_external_data(find_weight(model), offset=0, length=1024)),
    graph_case("weights-with-two-locations", add_external_entry("location", "/etc/passwd")),
    graph_case("weights-with-two-locations-outside-first", add_external_entry("location", "/etc/passwd", first=True)),
    graph_case("weights-with-base-path", add_external_entry("basepath", "/etc")),
    graph_case("weights-offset-past-the-end", move_weights(BACKBONE_WEIGHTS_FILE, offset=2**40)),
    graph_case("weights-length-past-the-end", move_weights(BACKBONE_WEIGHTS_FILE, length=2**40)),
    graph_case("weights-negative-offset", move_weights(BACKBONE_WEIGHTS_FILE, offset=-8)),
    graph_case("weights-offset-not-a-number", move_weights(BACKBONE_WEIGHTS_FILE, offset="1_0")),
    graph_case("weights-with-false-shape", lambda model: find_weight(model).dims.__setitem__(0, 2**40)),
    graph_case("weights-of-unknown-type", set_unknown_type, InvalidVersion, detected_by="engine"),
    graph_case("a-tensor-of-a-terabyte", add_short_tensor([2**20, 2**18])),
    graph_case("a-tensor-of-negative-size", add_short_tensor([-1])),
    graph_case(
        "a-constant-outside", prepend_nodes(helper.make_node("Constant", [], ["c"], value=make_external_tensor()))
    ),
    graph_case("a-branch", prepend_nodes(if_node(branch_body()))),
    graph_case("a-branch-with-weights-outside", prepend_nodes(if_node(branch_body(make_external_tensor())))),
    graph_case("an-endless-loop", prepend_nodes(endless_loop())),
    graph_case("a-custom-operator", prepend_nodes(helper.make_node("Run", ["w1"], ["r"], domain="evil"))),
    graph_case(
        "an-operator-of-the-engine", prepend_nodes(helper.make_node("EPContext", ["w1"], ["r"], domain="com.microsoft"))
    ),
    graph_case("a-function-that-calls-itself", add_functions(make_function("f", "f"))),
    graph_case(
        "functions-that-grow",
        add_functions(
            make_function("f0", "Identity", 10, domain=""),
            *(make_function(f"f{i}", f"f{i - 1}", 10) for i in range(1, 9)),
        ),
    ),
    graph_case(
        "too-many-functions", add_functions(*(make_function(f"f{i}", "Identity", domain="") for i in range(300)))
    ),
    graph_case("two-functions-of-one-name", add_functions(*[make_function("f", "Identity", domain="")] * 2)),
    graph_case("a-function-with-weights-outside", add_function_with_external_default),
    graph_case("sparse-weights-outside", add_external_sparse_tensor),
    graph_case("training-information", add_external_training_info),
    graph_case("a-dropout-without-input", lambda model: first_dropout(model).input.__setitem__(0, ""), LoweringError),
    graph_case("a-dropout-without-output", lambda model: first_dropout(model).ClearField("output"), LoweringError),
    graph_case("an-output-without-a-node", lambda model: model.graph.node.pop(), InvalidVersion, detected_by="engine"),
    graph_case("an-index-out-of-range", gather_out_of_range, LabelnextError, detected_by="engine"),
    int8_case("int8-weights-outside", lambda model: model.graph.initializer.append(make_external_tensor())),
    int8_case(
        "int8-weights-in-the-other-file",
        lambda model: model.graph.initializer.append(make_external_tensor(BACKBONE_WEIGHTS_FILE)),
    ),
    int8_case("int8-endless-loop", prepend_nodes(endless_loop())),
    file_case("graph-is-a-link", replace_by_link(MODEL_FILE)),
    file_case("weights-are-a-link", replace_by_link(BACKBONE_WEIGHTS_FILE)),
    file_case(
        "weights-are-an-endless-device", replace_file(BACKBONE_WEIGHTS_FILE, lambda path: path.symlink_to("/dev/zero"))
    ),
    file_case("probe-is-a-pipe", replace_file(PROBE_FILE, os.mkfifo)),
    file_case("probe-is-a-pipe-of-length-zero", replace_probe_by_empty_pipe),
    file_case("graph-is-a-folder", replace_file(MODEL_FILE, Path.mkdir)),
    file_case("report-is-a-link", replace_by_link("report")),
    file_case("manifest-is-a-link", replace_by_link(MANIFEST_FILE), ManifestError),
    file_case("manifest-is-a-pipe", replace_file(MANIFEST_FILE, os.mkfifo), ManifestError),
    file_case("manifest-is-a-folder", replace_file(MANIFEST_FILE, Path.mkdir), ManifestError),
    *(file_list_case(f"a-file-called-{name[:20]}", list_file(name)) for name in INVALID_NAMES),
    file_list_case("a-missing-file", list_file("report/other.html"), DigestError),
    file_list_case("a-file-below-a-file", list_file(f"{MODEL_FILE}/x"), DigestError),
    file_list_case("a-false-size", lambda listed: listed[BACKBONE_WEIGHTS_FILE].update(size_bytes=1), DigestError),
    file_list_case("weights-without-a-digest", lambda listed: listed.pop(BACKBONE_WEIGHTS_FILE), UnsafeGraph),
    manifest_case("too-many-passes", passes=10**9),
    manifest_case("too-large-images", input={"height": 10**9, "width": 8}),
    manifest_case("labels-with-surrogates", labels=["\ud800", "b"]),
    manifest_case("dropout-sites-with-booleans", dropout_sites=[{"features": [True], "probability": 0.5}]),
    manifest_text_case("a-manifest-of-many-megabytes", b'{"contract": 3,' + b" " * (17 * 2**20) + b"}"),
    manifest_text_case("a-manifest-of-many-levels", b"[" * 200_000),
    manifest_text_case("a-manifest-of-many-objects", b'{"metrics":' * 50_000),
    manifest_text_case("a-number-of-many-digits", b'{"contract": ' + b"9" * 5000 + b"}"),
    manifest_text_case("a-manifest-not-in-utf-8", b"\xff\xfe"),
    probe_case("a-probe-that-unpickles", change_arrays(images=np.array([{}], dtype=object))),
    probe_case("a-probe-that-is-a-pickle", lambda path, _: path.write_bytes(b"\x80\x04K\x01.")),
    probe_case("a-probe-that-is-an-array", save_one_array),
    probe_case("a-probe-of-a-terabyte", claim_a_terabyte),
    probe_case("a-probe-with-a-false-shape", claim_false_shape),
    probe_case("a-probe-of-nan", change_arrays(mean=np.full((4, 3), np.nan, np.float32))),
    probe_case("a-probe-of-too-many-passes", change_arrays(passes=np.int64(10**15))),
    probe_case("a-probe-of-two-shapes", change_arrays(features=np.zeros((3, 16), np.float32))),
    probe_case("a-probe-without-images", change_arrays(images=np.zeros((0, 8, 8, 3), np.uint8))),
)

ONE_OF_EACH = tuple(
    {(case.error, case.detected_by, case.name.startswith("int8-")): case for case in MALICIOUS}.values()
)
"""One case of each error and detecting step, separately for int8 backbones."""
