"""The house: which module may import which, and what may be added by entries alone."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from torchvision.models import mobilenet_v3_small

import heptad
from conftest import NAMES, serving, write_idx
from heptad.architectures import ARCHITECTURES, Architecture
from heptad.datasets.catalog import CATALOG, CatalogEntry, IdxFile
from heptad.files import sha256_of
from heptad.recipes import RECIPES, ShippedRecipe

SOURCE = Path(heptad.__file__).parent

# Lowest first; a module imports only from groups before its own, or from its own package. The
# modules of a group do not import one another.
ORDER = [
    ["errors", "text"],
    ["pages", "randomness", "files", "distributed", "schedules"],
    ["recipe"],
    ["records", "measures"],
    ["stores", "polling"],
    ["datasets", "architectures", "augmentation", "plots", "run_folder", "run_log", "event_log"],
    ["recipes", "transform"],
    ["image_source"],
    [
        "stages.device",
        "stages.data",
        "stages.model",
        "stages.objective",
        "stages.training",
        "stages.evaluation",
        "stages.saving",
    ],
    ["features", "cycle_state", "finished", "seed_group"],
    ["checkpoints"],
    ["cycle"],
    ["seeds", "reuse"],
    ["classifier", "interactive"],
    ["loaded_run"],
    [
        "reports",
        "exporting",
        "serving",
        "tuning",
        "doctor",
        "fetching",
        "resume_proof",
        "scanning",
    ],
    ["verifying"],
    ["cli"],
    ["__main__", "__init__"],
]
LEVEL = {name: level for level, group in enumerate(ORDER) for name in group}


def house_name(module: str) -> str:
    """`stages.data` for a stage, else the first part of the name after `heptad`."""
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "stages" else parts[0]


def imports_of(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name if name in MODULES else node.module for name in names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name.removeprefix("heptad.") for name in found if name.startswith("heptad.")}


def module_of(path: Path) -> str:
    return ".".join(["heptad", *path.relative_to(SOURCE).with_suffix("").parts])


PATHS = sorted(SOURCE.rglob("*.py"))
MODULES = {module_of(path).removesuffix(".__init__") for path in PATHS}


def breaches(path: Path) -> list[str]:
    own = house_name(module_of(path).removeprefix("heptad."))
    if own == "stages":
        return []
    return [
        imported
        for imported in imports_of(path)
        if house_name(imported) != own and LEVEL[house_name(imported)] >= LEVEL[own]
    ]


@pytest.mark.parametrize("path", PATHS, ids=module_of)
def test_imports_go_one_way_only(path):
    assert breaches(path) == []


def test_the_order_of_the_house_can_be_broken(tmp_path, monkeypatch):
    upward = tmp_path / "recipe.py"
    upward.write_text("from heptad.cycle import train\nfrom heptad import records\n")
    monkeypatch.setattr("test_house.SOURCE", tmp_path)
    assert set(breaches(upward)) == {"cycle", "records"}


def test_what_says_no_torch_imports_none():
    silent = [path for path in PATHS if "No torch" in path.read_text(encoding="utf-8")[:600]]
    assert len(silent) >= 6
    for path in silent:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
        names |= {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module}
        assert not any(name.split(".")[0].startswith("torch") for name in names), path


def test_public_names_exist_and_are_listed():
    for name in heptad.__all__:
        assert getattr(heptad, name) is not None
    assert set(heptad.__all__) <= set(dir(heptad))


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_names_what_exists(name):
    recipe = RECIPES[name].recipe
    assert recipe.name == name
    assert recipe.architecture in ARCHITECTURES
    assert recipe.data in CATALOG


def test_a_fourth_architecture_is_one_entry_and_one_recipe(digits, workplace, monkeypatch):
    entry = Architecture(
        name="mobilenet",
        build=lambda _, num_classes: mobilenet_v3_small(num_classes=num_classes),
        last_layer="classifier.3",
        channels=(3,),
        image_sizes=range(32, 225),
    )
    recipe = RECIPES["resnet50"].recipe.changed(
        name="mobilenet", architecture="mobilenet", image_size=32, weights="none", epochs=1
    )
    monkeypatch.setitem(ARCHITECTURES, "mobilenet", entry)
    monkeypatch.setitem(RECIPES, "mobilenet", ShippedRecipe(recipe, "", "", ""))

    run = heptad.train(heptad.load_recipe("mobilenet", data=str(digits), limit=64))

    assert (run.folder / "mobilenet_digits.pth").is_file()
    assert sum(1 for _ in heptad.load_run(run.folder).model.network.parameters()) == sum(
        1 for _ in mobilenet_v3_small().parameters()
    )


def test_another_mnist_like_set_is_one_entry(mnist, tmp_path, workplace, monkeypatch):
    published = tmp_path / "published"
    for part, count in (("train", 60), ("test", 40)):
        images, labels = mnist[part]
        write_idx(tmp_path / "plain", part, images[:count, 0], labels[:count])
        write_idx(published, part, images[:count, 0], labels[:count], packed=True)
    files = {
        name: IdxFile(name, path.stat().st_size, sha256_of(path))
        for name in NAMES["train"] + NAMES["test"]
        for path in [tmp_path / "plain" / name]
    }
    with serving(published) as address:
        entry = CatalogEntry(
            name="few",
            title="a few digits",
            classes=tuple("abcdefghij"),
            train=tuple(files[name] for name in NAMES["train"]),
            test=tuple(files[name] for name in NAMES["test"]),
            mirrors=(address,),
            mean=0.13,
            deviation=0.31,
        )
        monkeypatch.setitem(CATALOG, "few", entry)
        run = heptad.train(heptad.load_recipe("lenet5", data="few", epochs=1))
    assert run.metrics["classes"] == list("abcdefghij")
    assert (run.folder / "lenet5_few.pth").is_file()
    assert run.scores.num_images == 40
