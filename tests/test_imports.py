"""Import rules: trainer -> contract <- server, sub-packages in layers, and each heavy library in few folders."""

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("contract", "trainer", "server", "demo")

FORBIDDEN = {
    "contract": {"trainer", "server", "demo", "torch", "torchvision", "baal", "onnxruntime", "flask"},
    "trainer": {"server", "demo", "flask", "gunicorn"},
    "server": {"trainer", "demo", "torch", "torchvision", "baal"},
    "demo": {"server", "trainer"},
}
LAYERS = {
    "contract": [{"versions"}, {"images", "scores"}, {"features", "graph"}],
    "server": [{"observe"}, {"inference"}, {"http", "page"}, {"pool"}],
    "trainer": [
        {"labelstudio"},
        {"labels"},
        {"model"},
        {"evaluation"},
        {"ordering", "report", "scoring", "tabs"},
        {"ranking", "study"},
        {"watching"},
    ],
}
"""The sub-packages of each package in layers, from bottom to top. A sub-package may import lower layers, and modules
beside the sub-packages that themselves import only lower layers."""
CONFINED = {
    "onnxruntime": {"server/inference", "trainer/model/backbones", "trainer/model/graphs"},
    "flask": {"server"},
    "urllib3": {"contract", "contract/images", "demo", "trainer/scoring"},
    "minisign": {"contract/versions"},
    "obstore": {"contract/versions"},
    "jinja2": {"demo", "server/page", "trainer/report"},
    "matplotlib": {"trainer/report"},
    "cleanlab": {"trainer/report"},
    "baal": {"trainer/model"},
    "timm": {"trainer/model/backbones"},
    "prometheus_client": {"server/observe"},
    "pyarrow": {"server/pool"},
    "ray": {"server/pool"},
}


def imports(path, *, for_types=True):
    """Yield the imports of a file, also those inside functions; `from a.b import c` as "a.b.c"."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    if not for_types:
        tree.body = [
            node for node in tree.body if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test))
        ]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


FILES = {path.relative_to(ROOT).as_posix(): path for name in PACKAGES for path in (ROOT / name).rglob("*.py")}
LIBRARIES = {file: {name.partition(".")[0] for name in imports(path, for_types=False)} for file, path in FILES.items()}


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_one_way(package):
    wrong = {file: names & FORBIDDEN[package] for file, names in LIBRARIES.items() if file.startswith(f"{package}/")}
    assert {file: names for file, names in wrong.items() if names} == {}


@pytest.mark.parametrize("library", CONFINED)
def test_a_library_stays_in_its_folders(library):
    """So that only files of these folders must change if the library is replaced."""
    assert {str(Path(file).parent) for file, names in LIBRARIES.items() if library in names} == CONFINED[library]


@pytest.mark.parametrize("package", LAYERS)
def test_every_sub_package_has_a_layer(package):
    sub_packages = {path.parent.name for path in (ROOT / package).glob("*/*.py")}
    assert sub_packages == set.union(*LAYERS[package])


@pytest.mark.parametrize("package", LAYERS)
def test_sub_packages_import_downwards(package):
    """No sub-package imports its own layer or a higher one, directly or by modules beside the sub-packages."""
    violations = {
        (folder(file), target)
        for file in FILES
        if file.startswith(f"{package}/") and folder(file)
        for target in targets(file)
        if folder(target) != folder(file) and layer(target) >= layer(file)
    }
    assert violations == set()


def folder(file):
    """Return the sub-package of a file; "" for modules beside the sub-packages."""
    return file.split("/")[1] if file.count("/") > 1 else ""


@cache
def layer(file):
    """Return a file's layer; for a module beside the sub-packages the highest layer that it imports, or -1."""
    if name := folder(file):
        return next(number for number, names in enumerate(LAYERS[file.split("/")[0]]) if name in names)
    return max((layer(target) for target in reached(file) if folder(target)), default=-1)


@cache
def reached(file):
    """Return the files of its package that a module beside the sub-packages imports, directly or by such modules."""
    seen, new = set(), {file}
    while new:
        seen |= new
        new = {target for each in new if not folder(each) for target in targets(each)} - seen
    return seen - {file}


@cache
def targets(file):
    """Return the files of its own package that a file imports."""
    package = file.split("/")[0]
    names = [name.split(".") for name in imports(FILES[file]) if name.startswith(f"{package}.")]
    imported = set()
    for name in names:
        candidates = ("/".join(name) + ".py", "/".join(name[:-1]) + ".py", "/".join([*name[:-1], "__init__.py"]))
        imported.update([path for path in candidates if path in FILES][:1])
    return imported
