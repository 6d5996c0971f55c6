"""Malicious versions, which an attacker with write access to the repository might place there, with expected errors.

Each is an edited version of the tiny model. Digests are updated afterwards, as an attacker would do, except in cases
about the manifest or the files themselves.
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
    """`engine` if only running the graph detects it."""

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


# Graphs. `change` gets the ModelProto, loaded without its weights.


def graph(name, change, error=UnsafeGraph, *, file=MODEL_FILE, detected_by="contract"):
    def edit(folder):
        model = onnx.load(folder / file, load_external_data=False)
        change(model)
        (folder / file).write_bytes(model.SerializeToString())

    return Malicious(name, edit, error, detected_by=detected_by)


def weight(model):
    return next(tensor for tensor in model.graph.initializer if tensor.name == "w1")


def point_to(tensor, **entries):
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    del tensor.external_data[:]
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=str(value))


def weights_at(location, **entries):
    return lambda model: point_to(weight(model), **{"location": location, "offset": 0, "length": 1024, **entries})


def add_entry(key, value, *, first=False):
    def change(model):
        entries = [(entry.key, entry.value) for entry in weight(model).external_data]
        del weight(model).external_data[:]
        for entry_key, entry_value in [(key, value), *entries] if first else [*entries, (key, value)]:
            weight(model).external_data.add(key=entry_key, value=entry_value)

    return change


def external_tensor(location="/etc/passwd"):
    tensor = TensorProto(name="outside", data_type=TensorProto.FLOAT, dims=[4])
    point_to(tensor, location=location, offset=0, length=16)
    return tensor


def declare(dims):
    def change(model):
        model.graph.initializer.append(
            TensorProto(name="huge", data_type=TensorProto.FLOAT, dims=dims, raw_data=bytes(4)),
        )

    return change


def prepend(*nodes):
    def change(model):
        kept = [*nodes, *model.graph.node]
        del model.graph.node[:]
        model.graph.node.extend(kept)

    return change


def body(initializer=None):
    """Return a graph without inputs and with one output, for a branch."""
    tensor = initializer or numpy_helper.from_array(np.zeros(4, np.float32), "outside")
    node = helper.make_node("Identity", ["outside"], ["inside"])
    output = helper.make_tensor_value_info("inside", TensorProto.FLOAT, [4])
    return helper.make_graph([node], "body", [], [output], [tensor])


def branch(inner):
    return helper.make_node("If", ["training"], ["branched"], then_branch=inner, else_branch=inner)


def loop():
    infos = [
        helper.make_tensor_value_info("i", TensorProto.INT64, []),
        helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
    ]
    again = helper.make_node("Identity", ["go_on"], ["still"])
    output = helper.make_tensor_value_info("still", TensorProto.BOOL, [])
    return helper.make_node("Loop", ["", "training"], [], body=helper.make_graph([again], "body", infos, [output]))


def add_functions(*functions):
    def change(model):
        model.functions.extend(functions)
        model.opset_import.append(helper.make_opsetid("own", 1))
        prepend(helper.make_node(functions[-1].name, ["w1"], ["called"], domain="own"))(model)

    return change


def function(name, called, times=1, *, domain="own"):
    tips = ["x", *(f"t{i}" for i in range(times - 1)), "y"]
    nodes = [helper.make_node(called, [a], [b], domain=domain) for a, b in itertools.pairwise(tips)]
    return helper.make_function("own", name, ["x"], ["y"], nodes, [*OPSETS, helper.make_opsetid("own", 1)])


def function_with_default(model):
    made = function("f", "Identity", domain="")
    made.attribute_proto.append(helper.make_attribute("default", external_tensor()))
    add_functions(made)(model)


def sparse(model):
    model.graph.sparse_initializer.add(dims=[4]).values.CopyFrom(external_tensor())


def training_info(model):
    model.training_info.add().initialization.initializer.append(external_tensor())


def first_dropout(model):
    return next(node for node in model.graph.node if node.op_type == "Dropout")


def unknown_type(model):
    weight(model).data_type = 99


def gather_out_of_range(model):
    model.graph.initializer.append(numpy_helper.from_array(np.array([10**9]), "far"))
    prepend(helper.make_node("Gather", ["w1", "far"], ["gathered"]))(model)
    next(node for node in model.graph.node if "w2" in node.input).input[1] = "gathered"


# Files.


def instead_of(file, make):
    """Replace a file by what `make` creates at its path."""

    def edit(folder):
        (folder / file).unlink()
        make(folder / file)

    return edit


def moved_behind_a_link(file):
    def edit(folder):
        moved = folder.parent.parent / "outside" / Path(file).name
        moved.parent.mkdir(exist_ok=True)
        shutil.move(folder / file, moved)
        (folder / file).symlink_to(moved)

    return edit


def pipe_of_no_length(folder):
    instead_of(PROBE_FILE, os.mkfifo)(folder)
    edit_manifest(folder, lambda document: document["files"][PROBE_FILE].update(size_bytes=0))


def files(name, edit, error=DigestError):
    return Malicious(name, edit, error, updates_digests=False)


# Manifests.


def manifest(name, error=ManifestError, **fields):
    return files(name, lambda folder: edit_manifest(folder, lambda document: document.update(fields)), error)


def manifest_of_files(name, change, error=ManifestError):
    return files(name, lambda folder: edit_manifest(folder, lambda document: change(document["files"])), error)


def raw_manifest(name, text):
    return files(name, lambda folder: (folder / MANIFEST_FILE).write_bytes(text), ManifestError)


def add_file(name):
    return lambda listed: listed.update({name: listed[BACKBONE_WEIGHTS_FILE]})


# Probes.


def probe(name, change):
    def edit(folder):
        with np.load(folder / PROBE_FILE) as archive:
            arrays = dict(archive)
        change(folder / PROBE_FILE, arrays)

    return Malicious(name, edit, DigestError)


def one_array(path, arrays):
    with path.open("wb") as file:
        np.save(file, arrays["images"])


def replace_array(**changed):
    return lambda path, arrays: np.savez(path, **{**arrays, **changed})


def bomb(path, arrays):
    """Write an archive whose directory claims a terabyte."""
    np.savez(path, **arrays)
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = b"rewritten"
        archive.getinfo("images.npy").file_size = 2**40


def false_shape(path, arrays):
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


def int8(name, change):
    """Return a case of an edited int8 backbone; a server then serves the version in float32."""
    return graph(name, change, file=INT8_BACKBONE_FILE)


ELSEWHERE = (
    *("/etc/passwd", "../../../etc/passwd", "file:///etc/passwd", "*/_ORT_MEM_ADDR_/*", PROBE_FILE),
    *(f"../20260102T030405678Z-0a1b2c/{BACKBONE_WEIGHTS_FILE}", f"./{BACKBONE_WEIGHTS_FILE}"),
)
"""Forbidden locations of weights: outside, in another version, under another spelling, in another file, in memory."""
INVALID_NAMES = ("../CURRENT", "/etc/passwd", "..\\CURRENT", "x" * 256, "a\0b")
MALICIOUS = (
    *(graph(f"weights-at-{location}", weights_at(location)) for location in ELSEWHERE),
    graph("weights-without-location", lambda model: point_to(weight(model), offset=0, length=1024)),
    graph("weights-with-two-locations", add_entry("location", "/etc/passwd")),
    graph("weights-with-two-locations-outside-first", add_entry("location", "/etc/passwd", first=True)),
    graph("weights-with-a-base-path", add_entry("basepath", "/etc")),
    graph("weights-beyond-the-end", weights_at(BACKBONE_WEIGHTS_FILE, offset=2**40)),
    graph("weights-over-the-end", weights_at(BACKBONE_WEIGHTS_FILE, length=2**40)),
    graph("weights-before-the-beginning", weights_at(BACKBONE_WEIGHTS_FILE, offset=-8)),
    graph("weights-at-offset-not-a-number", weights_at(BACKBONE_WEIGHTS_FILE, offset="1_0")),
    graph("weights-with-false-shape", lambda model: weight(model).dims.__setitem__(0, 2**40)),
    graph("weights-of-unknown-type", unknown_type, InvalidVersion, detected_by="engine"),
    graph("a-tensor-of-a-terabyte", declare([2**20, 2**18])),
    graph("a-tensor-of-negative-size", declare([-1])),
    graph("a-constant-outside", prepend(helper.make_node("Constant", [], ["c"], value=external_tensor()))),
    graph("a-branch", prepend(branch(body()))),
    graph("a-branch-with-weights-outside", prepend(branch(body(external_tensor())))),
    graph("an-endless-loop", prepend(loop())),
    graph("a-custom-operator", prepend(helper.make_node("Run", ["w1"], ["r"], domain="evil"))),
    graph("an-operator-of-the-engine", prepend(helper.make_node("EPContext", ["w1"], ["r"], domain="com.microsoft"))),
    graph("a-function-that-calls-itself", add_functions(function("f", "f"))),
    graph(
        "functions-that-grow",
        add_functions(
            function("f0", "Identity", 10, domain=""), *(function(f"f{i}", f"f{i - 1}", 10) for i in range(1, 9))
        ),
    ),
    graph("too-many-functions", add_functions(*(function(f"f{i}", "Identity", domain="") for i in range(300)))),
    graph("two-functions-of-one-name", add_functions(*[function("f", "Identity", domain="")] * 2)),
    graph("a-function-with-weights-outside", function_with_default),
    graph("sparse-weights-outside", sparse),
    graph("training-information", training_info),
    graph("a-dropout-without-input", lambda model: first_dropout(model).input.__setitem__(0, ""), LoweringError),
    graph("a-dropout-without-output", lambda model: first_dropout(model).ClearField("output"), LoweringError),
    graph("an-output-without-node", lambda model: model.graph.node.pop(), InvalidVersion, detected_by="engine"),
    graph("an-index-out-of-range", gather_out_of_range, LabelnextError, detected_by="engine"),
    int8("int8-weights-outside", lambda model: model.graph.initializer.append(external_tensor())),
    int8(
        "int8-weights-in-the-other-file",
        lambda model: model.graph.initializer.append(external_tensor(BACKBONE_WEIGHTS_FILE)),
    ),
    int8("int8-endless-loop", prepend(loop())),
    files("graph-is-a-link", moved_behind_a_link(MODEL_FILE)),
    files("weights-are-a-link", moved_behind_a_link(BACKBONE_WEIGHTS_FILE)),
    files(
        "weights-are-an-endless-device", instead_of(BACKBONE_WEIGHTS_FILE, lambda path: path.symlink_to("/dev/zero"))
    ),
    files("probe-is-a-pipe", instead_of(PROBE_FILE, os.mkfifo)),
    files("probe-is-a-pipe-of-length-zero", pipe_of_no_length),
    files("graph-is-a-folder", instead_of(MODEL_FILE, Path.mkdir)),
    files("report-is-a-link", moved_behind_a_link("report")),
    files("manifest-is-a-link", moved_behind_a_link(MANIFEST_FILE), ManifestError),
    files("manifest-is-a-pipe", instead_of(MANIFEST_FILE, os.mkfifo), ManifestError),
    files("manifest-is-a-folder", instead_of(MANIFEST_FILE, Path.mkdir), ManifestError),
    *(manifest_of_files(f"a-file-called-{name[:20]}", add_file(name)) for name in INVALID_NAMES),
    manifest_of_files("a-missing-file", add_file("report/other.html"), DigestError),
    manifest_of_files("a-file-below-a-file", add_file(f"{MODEL_FILE}/x"), DigestError),
    manifest_of_files("a-false-size", lambda listed: listed[BACKBONE_WEIGHTS_FILE].update(size_bytes=1), DigestError),
    manifest_of_files("weights-without-a-digest", lambda listed: listed.pop(BACKBONE_WEIGHTS_FILE), UnsafeGraph),
    manifest("too-many-passes", passes=10**9),
    manifest("too-large-images", input={"height": 10**9, "width": 8}),
    manifest("labels-with-surrogates", labels=["\ud800", "b"]),
    manifest("dropout-sites-with-booleans", dropout_sites=[{"features": [True], "probability": 0.5}]),
    raw_manifest("a-manifest-of-many-megabytes", b'{"contract": 3,' + b" " * (17 * 2**20) + b"}"),
    raw_manifest("a-manifest-of-many-levels", b"[" * 200_000),
    raw_manifest("a-manifest-of-many-objects", b'{"metrics":' * 50_000),
    raw_manifest("a-number-of-many-digits", b'{"contract": ' + b"9" * 5000 + b"}"),
    raw_manifest("a-manifest-not-in-utf-8", b"\xff\xfe"),
    probe("a-probe-that-unpickles", replace_array(images=np.array([{}], dtype=object))),
    probe("a-probe-that-is-a-pickle", lambda path, _: path.write_bytes(b"\x80\x04K\x01.")),
    probe("a-probe-that-is-an-array", one_array),
    probe("a-probe-of-a-terabyte", bomb),
    probe("a-probe-with-a-false-shape", false_shape),
    probe("a-probe-of-nan", replace_array(mean=np.full((4, 3), np.nan, np.float32))),
    probe("a-probe-of-too-many-passes", replace_array(passes=np.int64(10**15))),
    probe("a-probe-of-two-shapes", replace_array(features=np.zeros((3, 16), np.float32))),
    probe("a-probe-without-images", replace_array(images=np.zeros((0, 8, 8, 3), np.uint8))),
)

ONE_OF_EACH = tuple({(case.error, case.detected_by, case.name[:4] == "int8"): case for case in MALICIOUS}.values())
"""One case for each check that refuses versions."""
