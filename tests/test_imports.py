"""Who may import whom: trainer -> contract <- server, sub-packages one way, and each heavy library in few folders."""

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
"""The sub-packages of each package, from the bottom to the top. One imports those of lower layers, and modules beside
the sub-packages that rely on nothing but these."""
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
    """Return what a file imports, inside functions included: "a.b.c" also for `from a.b import c`."""
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
    wrong = {file: found & FORBIDDEN[package] for file, found in LIBRARIES.items() if file.startswith(f"{package}/")}
    assert {file: names for file, names in wrong.items() if names} == {}


@pytest.mark.parametrize("library", CONFINED)
def test_a_library_stays_in_its_folders(library):
    """Replacing a library means editing files of the folders named here and no others."""
    assert {str(Path(file).parent) for file, found in LIBRARIES.items() if library in found} == CONFINED[library]


@pytest.mark.parametrize("package", LAYERS)
def test_every_sub_package_has_its_layer(package):
    there = {path.parent.name for path in (ROOT / package).glob("*/*.py")}
    assert there == set.union(*LAYERS[package])


@pytest.mark.parametrize("package", LAYERS)
def test_sub_packages_import_downwards(package):
    """None imports its neighbours, what lies above it, or a module that would."""
    found = {
        (folder(file), target)
        for file in FILES
        if file.startswith(f"{package}/") and folder(file)
        for target in targets(file)
        if folder(target) != folder(file) and layer(target) >= layer(file)
    }
    assert found == set()


def folder(file):
    """Return the sub-package that a file is in, "" for those beside them."""
    return file.split("/")[1] if file.count("/") > 1 else ""


@cache
def layer(file):
    """Return the number of a file's layer; beside the sub-packages, of the highest layer that it relies on, or -1."""
    if name := folder(file):
        return next(number for number, names in enumerate(LAYERS[file.split("/")[0]]) if name in names)
    return max((layer(target) for target in reached(file) if folder(target)), default=-1)


@cache
def reached(file):
    """Return what a file beside the sub-packages imports, of its own package, by way of such files too."""
    found, new = set(), {file}
    while new:
        found |= new
        new = {target for each in new if not folder(each) for target in targets(each)} - found
    return found - {file}


@cache
def targets(file):
    """Return the files of its own package that a file imports."""
    package = file.split("/")[0]
    names = [name.split(".") for name in imports(FILES[file]) if name.startswith(f"{package}.")]
    found = set()
    for name in names:
        choices = ("/".join(name) + ".py", "/".join(name[:-1]) + ".py", "/".join([*name[:-1], "__init__.py"]))
        found.update([choice for choice in choices if choice in FILES][:1])
    return found
