"""The shipped runs as data, each with its source, command, expected time and score. No torch.

A new recipe is one more entry in `RECIPES`. A score that was not measured says so.
"""

from __future__ import annotations

import json
import tomllib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePath

from heptad.errors import RecipeError, did_you_mean
from heptad.files import user_path
from heptad.recipe import Recipe
from heptad.run_folder import refuse_search_as_run


@dataclass(frozen=True)
class ShippedRecipe:
    """A recipe and what is known of it: where it comes from, what to expect of it."""

    recipe: Recipe
    source: str
    command: str
    expected: str


LENET5 = Recipe(
    name="lenet5",
    architecture="lenet5",
    image_size=32,
    channels=1,
    mean=0.1307,
    deviation=0.3081,
    epochs=10,
)

VGG16 = Recipe(
    name="vgg16",
    architecture="vgg16",
    image_size=224,
    channels=3,
    mean=0.5,
    deviation=0.5,
    weights="default",
    trainable="last-layer",
    epochs=5,
    training_stats="vgg16_training_stats.json",
)

RESNET50 = Recipe(
    name="resnet50",
    architecture="resnet50",
    image_size=64,
    channels=3,
    mean=0.5,
    deviation=0.5,
    weights="default",
    trainable="last-layer",
    epochs=5,
    training_stats="metrics.pkl",
)

# What goes on from a trained last layer: small steps, smaller still for earlier layers.
FINETUNING = {
    "optimizer": "adamw",
    "learning_rate": 0.001,
    "layer_decay": 0.5,
    "schedule": "cosine",
    "warmup": 0.1,
    "weight_decay": 0.01,
    "label_smoothing": 0.1,
    "gradient_clip": 1.0,
    "averaging": 0.99,
    "training_stats": None,
}

LENET5_FAST = LENET5.changed(
    name="lenet5-fast",
    optimizer="adamw",
    learning_rate=0.004,
    schedule="one-cycle",
    weight_decay=0.01,
    batch_size=128,
    epochs=4,
)

RECIPES: dict[str, ShippedRecipe] = {
    "lenet5": ShippedRecipe(
        recipe=LENET5,
        source="LeCun et al. 1998, in its usual modern form: full C3, ReLU, max-pooling",
        command="heptad train lenet5",
        expected="98.98 % of the test images (98.76 to 99.16) with seed 0, in 40 s on two cores",
    ),
    "lenet5-fast": ShippedRecipe(
        recipe=LENET5_FAST,
        source="the network of lenet5; one cycle, Smith & Topin, arXiv:1708.07120; AdamW,"
        " Loshchilov & Hutter, arXiv:1711.05101; chosen on 10,000 training images set apart",
        command="heptad train lenet5-fast",
        expected="99.17 % of the test images in the mean of seeds 0 to 4 (99.04 to 99.24), in 13 s"
        " on two cores",
    ),
    "lenet5-best": ShippedRecipe(
        recipe=LENET5_FAST.changed(
            name="lenet5-best",
            shift=0.06,
            rotation=10,
            scale=0.1,
            shear=8,
            label_smoothing=0.05,
            averaging=0.999,
            epochs=60,
        ),
        source="the network of lenet5 and the training of lenet5-fast, longer, on images moved at"
        " random as in Simard et al. 2003, doi:10.1109/ICDAR.2003.1227801; chosen on 10,000"
        " training images set apart",
        command="heptad train lenet5-best",
        expected="99.52 % of the test images in the mean of seeds 0 to 4 (99.50 to 99.57), in"
        " 4 minutes on two cores",
    ),
    "lenet5-1998": ShippedRecipe(
        recipe=Recipe(
            name="lenet5-1998",
            architecture="lenet5-1998",
            image_size=32,
            fit="pad",
            channels=1,
            # What is 0 becomes -0.1, and what is 1 becomes 1.175.
            mean=0.1 / 1.275,
            deviation=1 / 1.275,
            loss="map",
            optimizer="adamw",
            learning_rate=0.006,
            schedule="one-cycle",
            weight_decay=0.1,
            epochs=12,
        ),
        source="LeCun, Bottou, Bengio & Haffner 1998, doi:10.1109/5.726791, section II: network,"
        " start values, pixels and loss; trained by AdamW in one cycle, where the paper took 20"
        " epochs of stochastic diagonal Levenberg-Marquardt on single images; chosen on 10,000"
        " training images set apart",
        command="heptad train lenet5-1998",
        expected="99.22 % of the test images in the mean of seeds 0 to 4 (99.15 to 99.35; the paper"
        " has 99.05), in 76 s on two cores",
    ),
    "vgg16": ShippedRecipe(
        recipe=VGG16,
        source="Simonyan & Zisserman, arXiv:1409.1556; torchvision's ImageNet weights, frozen",
        command="heptad train vgg16",
        expected="not measured with ImageNet weights",
    ),
    "resnet50": ShippedRecipe(
        recipe=RESNET50,
        source="He et al., arXiv:1512.03385; torchvision's ImageNet weights, frozen",
        command="heptad train resnet50",
        expected="not measured with ImageNet weights",
    ),
    "resnet50-finetune": ShippedRecipe(
        recipe=RESNET50.changed(
            name="resnet50-finetune", trainable="all", batchnorm="held", **FINETUNING
        ),
        source="goes on from the last layer that `resnet50` has trained, with every layer; lower"
        " rates for earlier ones, Howard & Ruder, arXiv:1801.06146",
        command="heptad train resnet50-finetune --weights runs/resnet50-1",
        expected="not measured with ImageNet weights",
    ),
    "vgg16-finetune": ShippedRecipe(
        recipe=VGG16.changed(
            name="vgg16-finetune", trainable="last-block", feature_dtype="float16", **FINETUNING
        ),
        source="goes on from the last layer that `vgg16` has trained, with the fifth block and the"
        " classifier, on kept features of the four blocks before: 0.2 MB an image, 14 GB for MNIST",
        command="heptad train vgg16-finetune --weights runs/vgg16-1",
        expected="not measured with ImageNet weights",
    ),
    "resnet50-recalibrated": ShippedRecipe(
        recipe=RESNET50.changed(name="resnet50-recalibrated", batchnorm="recalibrated"),
        source="`resnet50` with BatchNorm's statistics of the training images, taken once: the"
        " trap of statistics that drift, with the other way out",
        command="heptad train resnet50-recalibrated",
        expected="not measured with ImageNet weights",
    ),
    "resnet50-v1": ShippedRecipe(
        recipe=RESNET50.changed(
            name="resnet50-v1", weights="IMAGENET1K_V1", normalize="weights", training_stats=None
        ),
        source="`resnet50` from the weights of the paper's own training, whose features are said"
        " to transfer better frozen (Kornblith et al., arXiv:1805.08974, on regularised"
        " pretraining), given the contrast that they were trained with",
        command="heptad train resnet50-v1",
        expected="not measured with ImageNet weights",
    ),
    "vgg16-imagenet-norm": ShippedRecipe(
        recipe=VGG16.changed(name="vgg16-imagenet-norm", normalize="weights", training_stats=None),
        source="`vgg16` given the mean and contrast that its weights were trained with; the"
        " recipe's own numbers leave 0.45 of that contrast",
        command="heptad train vgg16-imagenet-norm",
        expected="not measured with ImageNet weights",
    ),
}


def load_recipe(source: str | Path, **settings: object) -> Recipe:
    """Give the recipe that `source` names, with other `settings` where they are given.

    source: a name in `RECIPES`, a `.toml` or `.json` file, or the folder of an earlier run, or of a
    group of runs, whose first seed it then has. Settings that are paths may be given as such.
    Raises RecipeError if there is none such, or if it does not hold a recipe; RunError for the
    folder of a search, which names the recipe in it.
    """
    settings = {k: str(v) if isinstance(v, PurePath) else v for k, v in settings.items()}
    if str(source) in RECIPES:
        recipe = RECIPES[str(source)].recipe
        return recipe.changed(**settings) if settings else recipe
    path = user_path(source)
    if (path / "seeds.json").is_file():
        values = _values_in(path / "seeds.json").get("recipe")
        return Recipe(**{**(values if isinstance(values, dict) else {}), **settings})
    if (path / "recipe.json").is_file():
        path = path / "recipe.json"
    if path.is_dir():
        refuse_search_as_run(path)
        raise RecipeError(
            f"the folder {str(source)!r} is no run: it has no recipe.json.",
            hint="name a recipe, a .toml or .json file, or the folder of an earlier run",
        )
    if path.suffix not in READERS or not path.exists():
        raise RecipeError(
            f"there is no recipe {str(source)!r}.{did_you_mean(str(source), RECIPES)}"
            f" Allowed: {', '.join(RECIPES)}, a .toml or .json file, or the folder of a run.",
        )
    return Recipe(**{**_values_in(path), **settings})


def _read_json(text: str) -> object:
    return json.loads(text, object_pairs_hook=_without_repetition)


def _without_repetition(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Refuse a name that is given twice, of which JSON would silently take the last."""
    values = dict(pairs)
    if len(values) < len(pairs):
        name, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"{name!r} is given more than once")
    return values


READERS: dict[str, Callable[[str], object]] = {".toml": tomllib.loads, ".json": _read_json}


def _values_in(path: Path) -> dict[str, object]:
    try:
        values = READERS[path.suffix](path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise RecipeError(
            f"the recipe {str(path)!r} is no text in UTF-8.", hint="save it again as UTF-8"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RecipeError(f"the recipe {str(path)!r} cannot be read: {reason}.") from error
    if not isinstance(values, dict):
        raise RecipeError(
            f"the recipe {str(path)!r} holds {type(values).__name__}; allowed: named settings.",
            hint="`heptad recipes lenet5` shows one in full",
        )
    return values
