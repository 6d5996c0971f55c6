"""Who may import whom: trainer -> contract <- server, and each heavy library in as few files as can be."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("contract", "trainer", "server", "demo")

FORBIDDEN = {
    "contract": {"trainer", "server", "demo", "torch", "torchvision", "baal", "onnxruntime", "flask"},
    "trainer": {"server", "demo", "flask", "gunicorn"},
    "server": {"trainer", "demo", "torch", "torchvision", "baal", "label_studio_sdk"},
    "demo": {"server", "trainer"},
}
CONFINED = {
    "onnxruntime": {"server/inference/engine.py", "trainer/model/validation.py", "trainer/model/quantise.py"},
    "flask": {"server/app.py"},
    "urllib3": {
        "contract/images/download.py",
        "demo/label_studio.py",
        "demo/processes.py",
        "demo/session.py",
        "trainer/ranking/servers.py",
    },
    "label_studio_sdk": {"trainer/labelstudio.py"},
    "minisign": {"contract/versions/signatures.py"},
    "obstore": {"contract/versions/bucket.py"},
    "jinja2": {"server/page/view.py", "trainer/report/html.py"},
    "matplotlib": {"trainer/report/plots.py"},
    "cleanlab": {"trainer/report/label_errors.py"},
    "baal": {"trainer/model/bayes.py"},
    "prometheus_client": {"server/observe/metrics.py"},
    "pyarrow": {"server/pool/rows.py", "server/pool/shards.py", "server/pool/worker.py"},
    "ray": {"server/pool/cluster.py"},
}


def imports(path):
    """Return the top-level names that a file imports when it runs, inside functions included."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    tree.body = [
        node for node in tree.body if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test))
    ]
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found


FILES = {path.relative_to(ROOT).as_posix(): imports(path) for name in PACKAGES for path in (ROOT / name).rglob("*.py")}


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_go_one_way(package):
    """No file of a package imports what the architecture forbids it."""
    wrong = {file: found & FORBIDDEN[package] for file, found in FILES.items() if file.startswith(f"{package}/")}
    assert {file: names for file, names in wrong.items() if names} == {}


@pytest.mark.parametrize("library", CONFINED)
def test_a_library_stays_in_its_files(library):
    """Replacing a library means editing the files named here and no others."""
    assert {file for file, found in FILES.items() if library in found} == CONFINED[library]
