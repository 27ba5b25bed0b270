"""A recipe is data: `Recipe` holds what changes a result, `RunOptions` how a run is carried out.

Both check themselves when they are made, from whatever source (Python, a file, the command line),
with the same messages. Every flag of the command line is made from a field here. No torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from math import inf
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    JsonValue,
    TypeAdapter,
    ValidationError,
    field_serializer,
    model_validator,
)

from heptad.errors import RecipeError, did_you_mean

# A plain name that is safe as part of a file's name on every system.
PLAIN_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
MOST_BYTES = 2**63 - 1
# 50 megapixels: twice what a phone takes, and far below what fills a memory.
MOST_PIXELS = 50_000_000
# Beyond twice its own limit Pillow opens nothing.
PIXELS_OF_PILLOW = 178_956_970


def _in_words(text: str) -> dict[str, JsonValue]:
    """Say what is allowed where the type alone does not."""
    return {"allowed": text}


def _none_from_text(value: object) -> object:
    return None if value == "none" else value


def _digit_from_text(value: object) -> object:
    return int(value) if isinstance(value, str) and value.isdecimal() else value


def _range_from_text(value: object) -> object:
    if not isinstance(value, str) or value == "none":
        return None if value == "none" else value
    try:
        low, high = map(float, value.split(","))
    except ValueError:
        return value
    return low, high


def _number_or_folder(value: object) -> object:
    if value == "folder" or isinstance(value, (int, float)):
        return value
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


class Settings(BaseModel):
    """Named values, frozen and checked together; the base of `Recipe` and `RunOptions`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def __init__(self, /, **values: Any) -> None:
        """Check `values` and take them; text is read as the number that it shows.

        Raises RecipeError with one line for every value that cannot be used.
        """
        try:
            super().__init__(**values)
        except ValidationError as error:
            # Misspelt names first: they explain what is missing.
            problems = sorted(error.errors(), key=lambda found: found["type"] != "extra_forbidden")
            lines = [_complaint(type(self), dict(problem)) for problem in problems]
            raise RecipeError("\n".join(dict.fromkeys(lines))) from None

    @model_validator(mode="before")
    @classmethod
    def _truth_is_no_number(cls, values: Any) -> Any:
        """Refuse true and false where they would pass as the numbers 1 and 0."""
        for name, value in values.items() if isinstance(values, Mapping) else ():
            if isinstance(value, bool) and not cls.is_switch(name):
                raise RecipeError(
                    f"{name} is {str(value).lower()}; allowed: {cls.allowed(name)}."
                    if name in cls.model_fields
                    else _no_such_setting(name, cls)
                )
        return values

    def changed(self, **settings: object) -> Self:
        """Give a copy with other `settings`, checked anew."""
        return type(self)(**{**self.model_dump(), **settings})

    @classmethod
    def checked(cls, name: str, value: object) -> Any:
        """Give a value as the field `name` takes it, whatever the other fields are.

        Raises RecipeError if the field does not take it, or there is no such field.
        """
        if name not in cls.model_fields:
            raise RecipeError(_no_such_setting(name, cls))
        field = TypeAdapter(
            cls.model_fields[name].rebuild_annotation(), config=ConfigDict(allow_inf_nan=False)
        )
        try:
            return field.validate_python(value)
        except ValidationError as error:
            problem = {**error.errors()[0], "loc": (name,), "input": value}
            raise RecipeError(_complaint(cls, problem)) from None

    @classmethod
    def number_kind(cls, name: str) -> type[int] | type[float] | None:
        """Tell whether the field `name` is any number, a whole one, or something else."""
        schema = fields_schema(cls)[name]
        kinds = {one.get("type") for one in (schema, *schema.get("anyOf", ()))}
        if "enum" in schema:
            return None
        return float if "number" in kinds else int if "integer" in kinds else None

    @classmethod
    def is_switch(cls, name: str) -> bool:
        """Tell whether the field `name` is on or off, and nothing else."""
        return name in cls.model_fields and cls.model_fields[name].annotation is bool

    @classmethod
    def allowed(cls, name: str) -> str:
        """Say in words which values the field `name` takes."""
        return _allowed(fields_schema(cls)[name])


@cache
def fields_schema(settings: type[Settings]) -> Mapping[str, Any]:
    """Give the JSON schema of each field by its name, worked out once: it takes milliseconds."""
    properties: dict[str, Any] = settings.model_json_schema()["properties"]
    return properties


class Recipe(Settings):
    """One training, whole: equal recipes give equal weights on the same machine."""

    name: str = Field(
        pattern=PLAIN_NAME,
        description="Name of the recipe, and of its run folders.",
        json_schema_extra=_in_words("letters, digits, '.', '_' and '-', a letter or digit first"),
    )
    architecture: str = Field(
        description="Network.",
        json_schema_extra=_in_words("a name such as lenet5, vgg16 or resnet50"),
    )
    data: str = Field(
        "mnist",
        min_length=1,
        description="Data set.",
        json_schema_extra=_in_words(
            "mnist, fashion-mnist, kmnist, qmnist, cifar10, a folder of IDX files, or one of class"
            " folders"
        ),
    )
    image_size: int = Field(ge=1, le=1024, description="Side in pixels of what the network sees.")
    fit: Literal["resize", "pad"] = Field(
        "resize",
        description="How an image comes to that size: resized, or left as it is in the middle of"
        " black.",
    )
    channels: Annotated[Literal[1, 3], BeforeValidator(_digit_from_text)] = Field(
        description="Channels the network sees; gray images are repeated to 3."
    )
    on_bad_image: Literal["error", "skip"] = Field(
        "error",
        description="What to do about pictures of a folder that cannot be used: stop before the "
        "training, or pass over them.",
    )
    drop_leaks: bool = Field(
        False,
        description="Leave exact copies of validation and test images out of the training.",
    )
    max_pixels: int = Field(
        MOST_PIXELS,
        ge=1,
        le=PIXELS_OF_PILLOW,
        description="Pictures of a folder with more pixels than this cannot be used; they are not "
        "even decoded.",
    )
    float_range: Annotated[tuple[float, float] | None, BeforeValidator(_range_from_text)] = Field(
        None,
        description="What is black and what is white in pictures of floating-point or 32-bit "
        "numbers, which cannot be used without it; numbers beyond are clipped.",
        json_schema_extra=_in_words("two numbers such as 0,1, the smaller first, or none"),
    )
    normalize: Literal["recipe", "data", "weights"] = Field(
        "recipe",
        description="Where mean and deviation come from: the recipe's two numbers, "
        "the training images, or the preset of the pretrained weights.",
    )
    mean: float = Field(description="Subtracted from pixels in 0..1, with normalize = recipe.")
    deviation: float = Field(gt=0, description="Divides after that, with normalize = recipe.")
    weights: str = Field(
        "none",
        min_length=1,
        description="Start weights.",
        json_schema_extra=_in_words(
            "default, a torchvision name such as IMAGENET1K_V1, a .pth or .safetensors file, "
            "the folder of a finished run, or none for random ones"
        ),
    )
    trainable: Literal["all", "last-block", "last-layer"] = Field(
        "all",
        description="The trained part: every parameter, the last block of the network and what "
        "follows it, or the last layer alone.",
    )
    batchnorm: Literal["frozen", "recalibrated", "drifting", "held"] = Field(
        "frozen",
        description="Statistics of frozen BatchNorm: the weights' own, re-estimated once on the "
        "training images, or moving with every batch as in the plain loop. Those of BatchNorm in "
        "the trained part move, unless held, as the weights have them, like all others.",
    )
    frozen_dropout: Literal["on", "off"] = Field(
        "on", description="Dropout inside the frozen part while training."
    )
    validation: Annotated[float | Literal["folder"], BeforeValidator(_number_or_folder)] = Field(
        0.0,
        description="Training images set apart, with all their copies, to choose the best epoch by;"
        " the test images are then scored once, at the end.",
        json_schema_extra=_in_words(
            "0 for none, a fraction below 1, a number of images, or folder for the set's own val"
        ),
    )
    patience: Annotated[int | None, BeforeValidator(_none_from_text)] = Field(
        None,
        ge=1,
        description="Stop after so many epochs without a better validation accuracy.",
        json_schema_extra=_in_words("a whole number, at least 1, or none"),
    )
    shift: float = Field(
        0.0, ge=0, le=0.5, description="Augmentation: largest shift, as a fraction of the side."
    )
    rotation: float = Field(
        0.0, ge=0, le=180, description="Augmentation: largest rotation, in degrees."
    )
    scale: float = Field(
        0.0, ge=0, le=0.9, description="Augmentation: largest relative change of size."
    )
    shear: float = Field(0.0, ge=0, le=60, description="Augmentation: largest shear, in degrees.")
    flip: float = Field(
        0.0, ge=0, le=1, description="Augmentation: probability of a flip from left to right."
    )
    erase: float = Field(
        0.0, ge=0, le=1, description="Augmentation: probability that a rectangle is erased."
    )
    views: Annotated[int | None, BeforeValidator(_none_from_text)] = Field(
        None,
        ge=1,
        le=1000,
        description="With augmentation and a trunk: keep the features of so many versions of each "
        "training image, one for each epoch in turn.",
        json_schema_extra=_in_words("a whole number, 1 to 1000, or none"),
    )
    loss: Literal["cross-entropy", "map"] = Field(
        "cross-entropy",
        description="What training makes small: cross entropy, or the same with one class more that"
        " is never right (LeCun et al. 1998, equation 9).",
    )
    label_smoothing: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of each label that the training loss spreads evenly over all classes.",
    )
    class_weights: Literal["none", "balanced"] = Field(
        "none",
        description="Weigh each class alike in the training loss, or each image.",
    )
    optimizer: Literal["adam", "adamw", "sgd"] = Field(
        "adam",
        description="What moves the trained part: Adam, AdamW, or gradient descent with Nesterov's "
        "momentum of 0.9.",
    )
    learning_rate: float = Field(0.001, gt=0, description="Learning rate, the largest of the run.")
    schedule: Literal["constant", "cosine", "one-cycle", "step"] = Field(
        "constant",
        description="Course of the learning rate: the same in every step, half a cosine down to "
        "nothing, one cycle up and down, or a tenth after half and three quarters of the steps.",
    )
    warmup: float = Field(
        0.0, ge=0, lt=1, description="Fraction of the steps in which the rate rises from nothing."
    )
    weight_decay: float = Field(
        0.0, ge=0, lt=1, description="Shrinks the trained part in every step; not with adam."
    )
    layer_decay: float = Field(
        1.0,
        gt=0,
        le=1,
        description="What the learning rate of each block is multiplied with, compared to the "
        "block behind it; 1 trains all alike.",
    )
    gradient_clip: Annotated[float | None, BeforeValidator(_none_from_text)] = Field(
        None,
        gt=0,
        description="Largest norm of a step's gradient; a larger one is scaled down to it.",
        json_schema_extra=_in_words("a number above 0, or none"),
    )
    averaging: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share that an exponential moving average of the weights keeps in each step; "
        "the average is scored and saved. 0 for none.",
    )
    batch_size: int = Field(64, ge=1, le=1_000_000, description="Images in a training step.")
    epochs: int = Field(ge=1, le=1_000_000, description="Passes over the training images.")
    seed: int = Field(
        0, ge=0, le=2**63 - 1, description="Decides every random draw: start, order, Dropout."
    )
    limit: Annotated[int | None, BeforeValidator(_none_from_text)] = Field(
        None,
        ge=1,
        description="At most this many training and this many test images, a stratified sample.",
        json_schema_extra=_in_words("a whole number, at least 1, or none"),
    )
    precision: Literal["float32", "float64", "bfloat16"] = Field(
        "float32",
        description="Floating-point type. float64 is for checking, and slow; bfloat16 is mixed: "
        "products of layers in 16 bits, weights and sums in float32.",
    )
    feature_dtype: Literal["float32", "float16"] = Field(
        "float32", description="Type in which the features of a frozen trunk are kept."
    )
    training_stats: Annotated[str | None, BeforeValidator(_none_from_text)] = Field(
        None,
        # Short enough for every file system: it is written after hours of training.
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}\.(json|pkl)$",
        description="A further file of losses and accuracies.",
        json_schema_extra=_in_words("a plain file name ending in .json or .pkl, or none"),
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        """Refuse settings that contradict one another or would have no effect."""
        given = self.validation
        if given != "folder" and (given < 0 or (given > 1 and given != int(given)) or given == 1):
            raise RecipeError(
                f"validation is {given:g}; allowed: {type(self).allowed('validation')}."
            )
        if self.patience is not None and not self.validation:
            raise RecipeError(
                f"patience is {self.patience}, but there is no validation to judge epochs by; the"
                " test images are never selected on. Set validation, such as 0.1."
            )
        if self.float_range and not 0 < self.float_range[1] - self.float_range[0] < inf:
            low, high = self.float_range
            raise RecipeError(
                f"float_range is {low:g},{high:g}; allowed: {type(self).allowed('float_range')}."
            )
        if self.weight_decay and self.optimizer == "adam":
            raise RecipeError(
                f"weight_decay is {self.weight_decay:g}, which adam divides by each gradient's"
                " size. Use adamw or sgd."
            )
        if self.label_smoothing and self.loss == "map":
            raise RecipeError(
                f"label_smoothing is {self.label_smoothing:g}, which with loss = map would call"
                " every image rubbish in part. Use cross-entropy."
            )
        if self.views is not None and not self.augments:
            raise RecipeError(f"views is {self.views}, but no augmentation is set.")
        return self

    @field_serializer("float_range")
    def _as_list(self, float_range: tuple[float, float] | None) -> list[float] | None:
        # As JSON gives it back.
        return None if float_range is None else list(float_range)

    @property
    def has_frozen_part(self) -> bool:
        """Whether some of the network is left as it came."""
        return self.trainable != "all"

    @property
    def number_type(self) -> str:
        """The type of weights and inputs: float32 also where layers multiply in fewer bits."""
        return "float64" if self.precision == "float64" else "float32"

    @property
    def augments(self) -> bool:
        """Whether training images are changed at random."""
        return any((self.shift, self.rotation, self.scale, self.shear, self.flip, self.erase))


def not_default(settings: Recipe | RunOptions, *names: str) -> list[str]:
    """Name those of the fields that have another value than by default."""
    fields = type(settings).model_fields
    return [name for name in names if getattr(settings, name) != fields[name].default]


class RunOptions(Settings):
    """How a run is carried out: nothing here changes the result, but for the last bits."""

    out: str | None = Field(
        None,
        min_length=1,
        description="Run folder.",
        json_schema_extra=_in_words("a folder; without it runs/NAME-NUMBER, the next number"),
    )
    device: str = Field(
        "auto",
        description="Device.",
        json_schema_extra=_in_words(
            "auto (CUDA if there is one, else the CPU), cpu, cuda, cuda:N, mps"
        ),
    )
    threads: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="CPU threads.",
        json_schema_extra=_in_words("a whole number, 1 to 1024; without it PyTorch's choice"),
    )
    memory: ByteSize = Field(
        ByteSize(512_000_000),
        ge=0,
        le=MOST_BYTES,
        description="Resized images up to this size are kept in memory, larger sets are "
        "resized batch by batch, to the same pixels.",
        json_schema_extra=_in_words("a size such as 512MB or 4GB"),
    )

    trunk: Literal["cached", "off"] = Field(
        "cached",
        description="Compute the outputs of the frozen trunk once and keep them, or run it in "
        "every step as the plain loop does.",
    )
    engine: Literal["auto", "eager", "rewritten"] = Field(
        "auto",
        description="What computes the features of a frozen trunk: the network as it is, or "
        "rewritten with fewer products and fused layers for the CPU; auto takes the latter where "
        "it pays and its answers agree.",
    )
    cache_size: ByteSize = Field(
        ByteSize(20_000_000_000),
        ge=0,
        le=MOST_BYTES,
        description="All kept features and decoded pictures together; those used longest ago go "
        "first, never those that a live run uses.",
        json_schema_extra=_in_words("a size such as 512MB or 20GB"),
    )
    save: Literal["whole", "trained-part"] = Field(
        "whole",
        description="Save the whole network, or only what differs from its start weights.",
    )
    resume: bool = Field(
        False,
        description="Go on with what the run folder holds, to the bit, or start if nothing was "
        "saved there yet.",
    )
    rank_timeout: int = Field(
        1800,
        ge=1,
        le=86_400,
        description="Under a launcher: how many seconds the processes wait for one another, also"
        " while one decodes pictures, or for another run to fill the cache, and at the end of the"
        " trunk's pass.",
    )
    checkpoint_every: str = Field(
        "60s",
        pattern=r"^[1-9][0-9]{0,8}s?$",
        description="How often all that a resume needs is saved.",
        json_schema_extra=_in_words(
            "a number of steps such as 500, or of seconds such as 60s (longer where saving takes "
            "more than a fiftieth of the time)"
        ),
    )

    tensorboard: bool = Field(
        False,
        description="Write losses and accuracies as events for TensorBoard into the run folder too"
        " (needs: pip install tensorboard).",
    )

    @field_serializer("memory", "cache_size")
    def _as_bytes(self, size: ByteSize) -> int:
        return int(size)


def to_toml(recipe: Recipe) -> str:
    """Write a recipe as TOML, a comment above each value, the fields without a value left out."""
    lines = []
    for name, field in type(recipe).model_fields.items():
        value = getattr(recipe, name)
        lines.append(f"# {field.description} Allowed: {recipe.allowed(name)}.")
        lines.append(f"# {name} is not set" if value is None else f"{name} = {_as_toml(value)}")
    return "\n".join(lines) + "\n"


def _as_toml(value: object) -> str:
    # JSON writes text and numbers as TOML reads them, but for what it escapes in two halves.
    written = json.dumps(value, ensure_ascii=False)
    return "".join(c if " " <= c <= "~" else f"\\U{ord(c):08X}" for c in written)


def _no_such_setting(name: str, settings: type[Settings]) -> str:
    names = list(settings.model_fields)
    return f"there is no setting {name!r}.{did_you_mean(name, names)} Allowed: {', '.join(names)}."


def _complaint(settings: type[Settings], problem: dict[str, Any]) -> str:
    """Turn one of pydantic's findings into a line that says what was found and what is allowed."""
    name = str(problem["loc"][0]) if problem["loc"] else "the recipe"
    if problem["type"] == "extra_forbidden":
        return _no_such_setting(name, settings)
    if name not in settings.model_fields:
        return f"{name}: {problem['msg']}."
    # Part of a value may be missing too.
    if problem["type"] == "missing" and len(problem["loc"]) == 1:
        return f"{name} is not given; allowed: {settings.allowed(name)}."
    found = problem["input"]
    if problem["type"] == "string_unicode":
        return f"{name} is {found}, which is no valid Unicode; allowed: {settings.allowed(name)}."
    choices = fields_schema(settings)[name].get("enum", [])
    hint = did_you_mean(found, map(str, choices)) if isinstance(found, str) else ""
    return (
        f"{name} is {found if found != '' else 'empty'}; allowed: {settings.allowed(name)}.{hint}"
    )


def _allowed(schema: dict[str, Any]) -> str:
    """Say in words what a JSON schema of one value allows."""
    if "allowed" in schema:
        return str(schema["allowed"])
    if "enum" in schema:
        return ", ".join(str(choice) for choice in schema["enum"])
    kind = {
        "boolean": "true, false",
        "integer": "a whole number",
        "number": "a finite number",
    }[schema["type"]]
    bounds = []
    if "minimum" in schema:
        bounds.append(f"at least {schema['minimum']}")
    if "exclusiveMinimum" in schema:
        bounds.append(f"above {schema['exclusiveMinimum']:g}")
    if "maximum" in schema:
        bounds.append(f"at most {schema['maximum']}")
    if "exclusiveMaximum" in schema:
        bounds.append(f"below {schema['exclusiveMaximum']:g}")
    return ", ".join([kind, *bounds])
