"""Runs as single files: what they hold, that they answer as the run does, and what is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import safetensors
import safetensors.torch
import torch
from PIL import Image
from torch import nn
from torchvision.models import resnet50, vgg16

import heptad
from conftest import write_pictures
from heptad.architectures.lenet import LeNet5
from heptad.cli import main
from heptad.errors import DamagedError, MissingError, ModelError, OutputError, SaveError
from heptad.exporting import onnx_file
from heptad.exporting.loading import FORMATS
from heptad.files import digest_of, sha256_of
from heptad.stages.model import digests_of

SUFFIXES = {"onnx": ".onnx", "safetensors": ".safetensors"}


@pytest.fixture(scope="module")
def exported(small, tmp_path_factory) -> dict[str, Path]:
    """A run of LeNet-5 in both formats, each in a folder without the run."""
    folder = tmp_path_factory.mktemp("exported")
    paths = {name: folder / f"model{suffix}" for name, suffix in SUFFIXES.items()}
    for name, path in paths.items():
        heptad.export(small, name, path)
    return paths


def said(capsys, *words) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main([*map(str, words)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def without_heptad(path: Path, images: list[Image.Image]) -> np.ndarray:
    """Compute logits [N, K] as somebody does who has the file, Pillow and ONNX Runtime alone."""
    session = onnxruntime.InferenceSession(path)
    texts = session.get_modelmeta().custom_metadata_map
    transform = json.loads(texts["transform"])
    side = transform["image_size"]
    inputs = []
    for image in images:
        mode = {1: "L", 3: "RGB"}[transform["channels"]]
        small = image.convert(mode).resize((side, side), Image.Resampling.BILINEAR)
        pixels = np.asarray(small, np.float32).reshape(side, side, -1) / 255
        mean, deviation = (np.float32(transform[name]) for name in ("mean", "deviation"))
        inputs.append(((pixels - mean) / deviation).transpose(2, 0, 1))
    [logits] = session.run(["logits"], {"images": np.stack(inputs)})
    return logits


def test_an_onnx_file_gives_the_runs_logits_to_who_has_nothing_of_heptad(
    small, exported, mnist, digits
):
    images = [Image.fromarray(image) for image in mnist["test"][0][:200, 0]]
    expected = heptad.load_run(small).evaluate(str(digits)).logits.numpy()
    logits = without_heptad(exported["onnx"], images)
    assert np.abs(logits - expected).max() < 1e-4 * np.abs(expected).max()
    assert (logits.argmax(1) == expected.argmax(1)).all()


@pytest.mark.parametrize("num_images", [1, 2, 7, 64])
def test_an_onnx_file_takes_any_number_of_images(exported, mnist, num_images):
    images = [Image.fromarray(image) for image in mnist["test"][0][:num_images, 0]]
    assert without_heptad(exported["onnx"], images).shape == (num_images, 10)


@pytest.mark.parametrize("odd", [0.0, 1.0, -1e4, 1e4, 1e-30])
def test_odd_values_are_computed_as_the_network_does(small, exported, odd):
    inputs = torch.full((3, 1, 32, 32), odd)
    inputs[1, 0, 5, 7] = -odd
    with torch.inference_mode():
        expected = heptad.load_run(small).model(inputs)
    session = onnxruntime.InferenceSession(exported["onnx"])
    [logits] = session.run(None, {"images": inputs.numpy()})
    assert np.abs(logits - expected.numpy()).max() <= 1e-4 * expected.abs().max()


def test_an_onnx_file_is_valid_whole_and_says_what_it_is(exported):
    model = onnx.load(exported["onnx"], load_external_data=False)
    onnx.checker.check_model(model, full_check=True)
    assert not any(map(onnx.external_data_helper.uses_external_data, model.graph.initializer))
    texts = {each.key: json.loads(each.value) for each in model.metadata_props}
    assert texts["classes"] == [*"0123456789"]
    assert texts["transform"] == {
        "image_size": 32,
        "channels": 1,
        "mean": [0.1307],
        "deviation": [0.3081],
    }
    assert model.producer_name == "heptad"
    assert "divided by 255" in model.doc_string


def test_a_safetensors_file_is_a_plain_state_dict_with_texts(small, exported):
    plain = LeNet5()
    plain.load_state_dict(safetensors.torch.load_file(exported["safetensors"]), strict=True)
    saved = torch.load(small / "lenet5_digits.pth", weights_only=True)
    assert all(torch.equal(plain.state_dict()[name], value) for name, value in saved.items())
    with safetensors.safe_open(exported["safetensors"], framework="pt") as file:
        assert json.loads(file.metadata()["classes"]) == [*"0123456789"]


@pytest.mark.parametrize("name", SUFFIXES)
def test_predict_says_of_an_exported_file_what_it_says_of_the_run(
    small, exported, digit_files, name, capsys
):
    answers = [
        json.loads(said(capsys, "predict", model, *digit_files, "--top", 10, "--json")[1])
        for model in (small, exported[name])
    ]
    for ours, theirs in zip(*answers, strict=True):
        assert [each["name"] for each in ours["classes"]] == [
            each["name"] for each in theirs["classes"]
        ]
        probabilities = ([each["probability"] for each in a["classes"]] for a in (ours, theirs))
        assert np.allclose(*probabilities, atol=1e-5)


def test_the_command_says_where_the_file_is_and_how_it_compared(small, tmp_path, capsys):
    run = shutil.copytree(small, tmp_path / "run")
    code, out, _ = said(capsys, "export", run, "--json")
    document = json.loads(out)
    assert code == 0
    assert document["file"] == str(run / "lenet5_digits.onnx")
    assert document["sha256"] == sha256_of(run / "lenet5_digits.onnx")
    # All there are: the run was tested on a sample. Some of them come twice.
    assert document["num_images"] == 64
    assert document["largest_difference"] < 1e-4
    assert main(["export", str(run), "--format", "safetensors"]) == 0
    assert (run / "lenet5_digits.safetensors").is_file()
    assert said(capsys, "verify", run)[0] == 0
    assert said(capsys, "evaluate", run)[0] == 0


@pytest.mark.slow
def test_a_file_that_answers_otherwise_is_not_kept(small, tmp_path, monkeypatch, capsys):
    """One weight of the last layer is nudged on the way; what was there before stays."""

    def spoiled(run, texts):
        with torch.no_grad():
            run.model.network.fc3.weight[3, 5] += 1.0
        try:
            return onnx_file.content_of(run, texts)
        finally:
            with torch.no_grad():
                run.model.network.fc3.weight[3, 5] -= 1.0

    target = tmp_path / "model.onnx"
    heptad.export(small, "onnx", target)
    before = target.read_bytes()
    monkeypatch.setitem(FORMATS, "onnx", replace(FORMATS["onnx"], content_of=spoiled))
    with pytest.raises(SaveError, match="answers otherwise than the run"):
        heptad.export(small, "onnx", target)
    assert target.read_bytes() == before
    code, _, err = said(capsys, "export", small, "--out", tmp_path / "other.onnx")
    assert (code, "was not kept" in err) == (3, True)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.slow
def test_no_folder_of_the_machine_is_named_in_a_file(mnist, tmp_path, monkeypatch):
    images, labels = mnist["train"]
    place = write_pictures(tmp_path / "secret" / "photos", images[:200, 0], labels[:200])
    monkeypatch.chdir(tmp_path)
    recipe = heptad.load_recipe("lenet5", data=str(place), epochs=1)
    run = heptad.train(recipe).folder
    for name in SUFFIXES:
        content = heptad.export(run, name).file.read_bytes()
        for folder in ("secret", "site-packages", str(Path(heptad.__file__).parent)):
            assert folder.encode() not in content
        assert b"photos" in content


def test_classes_of_any_name_survive(mnist, tmp_path, monkeypatch):
    names = ["=cmd()", "<script>", "ünï çødé", "\u202egnp", "猫"]
    images = mnist["train"][0][:100, 0]
    write_pictures(tmp_path / "set", images, [names[k % 5] for k in range(100)])
    monkeypatch.chdir(tmp_path)
    run = heptad.train(heptad.load_recipe("lenet5", data="set", epochs=1))
    for name in SUFFIXES:
        model = heptad.load_model(heptad.export(run.folder, name).file)
        assert sorted(model.classes) == sorted(names)
        assert not model.is_for_digits


@pytest.mark.slow
def test_a_run_whose_trained_part_alone_was_saved_is_exported_whole(digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    torch.save(resnet50().state_dict(), "made.pth")
    words = ["train", "resnet50", "--weights", "made.pth", "--image-size", "32", "--epochs", "1"]
    words += ["--data", str(digits), "--limit", "40", "--save", "trained-part", "--out", "run"]
    assert main([*words, "--no-report"]) == 0
    exported = heptad.export("run", "safetensors")
    assert exported.file.name == "resnet50_digits.safetensors"
    plain = resnet50()
    plain.fc = nn.Linear(2048, 10)
    plain.load_state_dict(safetensors.torch.load_file(exported.file), strict=True)


# What is refused


def test_weights_in_other_files_are_not_read(exported, tmp_path):
    model = onnx.load(exported["onnx"])
    onnx.save_model(
        model,
        tmp_path / "model.onnx",
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
    )
    assert (tmp_path / "weights.bin").is_file()
    with pytest.raises(ModelError, match="keeps weights in other files"):
        heptad.load_model(tmp_path / "model.onnx")


def test_weights_in_other_files_are_found_inside_of_branches_too(exported, tmp_path):
    """Within a graph that belongs to a node, where nobody looks first."""
    model = onnx.load(exported["onnx"])
    tensor = onnx.TensorProto(name="hidden", data_type=onnx.TensorProto.FLOAT, dims=[1])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/hostname")
    branch = onnx.helper.make_graph([], "branch", [], [], initializer=[tensor])
    node = onnx.helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch)
    model.graph.node.append(node)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="keeps weights in other files"):
        heptad.load_model(tmp_path / "model.onnx")


def test_weights_in_other_files_are_found_in_functions_too(exported, tmp_path):
    """As the default of an attribute of a function, which ONNX Runtime does read."""
    model = onnx.load(exported["onnx"])
    function = model.functions.add(name="hidden", domain="here")
    attribute = function.attribute_proto.add(name="value", type=onnx.AttributeProto.TENSOR)
    attribute.t.data_location = onnx.TensorProto.EXTERNAL
    attribute.t.external_data.add(key="location", value="secret.bin")
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="keeps weights in other files"):
        heptad.load_model(tmp_path / "model.onnx")


def described(exported, tmp_path, graph, **texts) -> Path:
    """An ONNX file of another graph under the description, and the digest, of a good one."""
    good = onnx.load(exported["onnx"])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)])
    model.ir_version = good.ir_version
    kept = {each.key: each.value for each in good.metadata_props} | texts
    kept["sha256"] = json.dumps(onnx_file._digest(model))
    onnx.helper.set_model_props(model, kept)
    path = tmp_path / "odd.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def graph_of(*nodes, kind=onnx.TensorProto.FLOAT, out=onnx.TensorProto.FLOAT, initializers=()):
    info = onnx.helper.make_tensor_value_info
    return onnx.helper.make_graph(
        list(nodes),
        "odd",
        [info("images", kind, ["n", 1, 32, 32])],
        [info("logits", out, ["n", 10])],
        initializer=list(initializers),
    )


def odd_graphs() -> dict[str, onnx.GraphProto]:
    """Graphs that take images and give something else than logits of ten classes."""
    node, tensor = onnx.helper.make_node, onnx.numpy_helper.from_array
    flat = node("Flatten", ["images"], ["flat"])
    starts, ends = tensor(np.array([0]), "starts"), tensor(np.array([10]), "ends")
    more, axes = tensor(np.array([12]), "more"), tensor(np.array([1]), "axes")
    ten = node("Slice", ["flat", "starts", "ends", "axes"], ["ten"])
    cast = node("Cast", ["ten"], ["logits"], to=onnx.TensorProto.INT64)
    twelve = node("Slice", ["flat", "starts", "more", "axes"], ["logits"])
    beyond = tensor(np.array([99_999]), "beyond")
    gather = node("Gather", ["flat", "beyond"], ["logits"], axis=1)
    numbers = (starts, ends, axes)
    return {
        "whole numbers": graph_of(
            flat, ten, cast, out=onnx.TensorProto.INT64, initializers=numbers
        ),
        "twelve of them": graph_of(flat, twelve, initializers=(starts, more, axes)),
        "an index out of range": graph_of(flat, gather, initializers=(beyond,)),
        "half precision": graph_of(
            flat,
            node("Slice", ["flat", "starts", "ends", "axes"], ["logits"]),
            kind=onnx.TensorProto.FLOAT16,
            out=onnx.TensorProto.FLOAT16,
            initializers=numbers,
        ),
    }


@pytest.mark.parametrize("name", odd_graphs())
def test_a_graph_that_gives_no_logits_is_refused_in_words(
    exported, tmp_path, digit_files, name, capsys
):
    path = described(exported, tmp_path, odd_graphs()[name])
    code, out, err = said(capsys, "predict", path, *digit_files[:2])
    assert (code, out) == (2, "")
    assert str(path) in err
    assert "Traceback" not in err


def test_names_in_a_graph_do_not_reach_the_terminal(exported, tmp_path, digit_files, capfd):
    """ONNX Runtime would print them as they are."""
    [flat, gather] = odd_graphs()["an index out of range"].node
    gather.name = "\x1b]0;owned\x07\nerror: spoofed"
    beyond = onnx.numpy_helper.from_array(np.array([99_999]), "beyond")
    path = described(exported, tmp_path, graph_of(flat, gather, initializers=(beyond,)))
    assert main(["predict", str(path), str(digit_files[0])]) == 2
    printed = "".join(capfd.readouterr())
    assert "\x1b" not in printed
    assert "\nerror: spoofed" not in printed


@pytest.mark.parametrize("name", SUFFIXES)
def test_a_flipped_bit_of_a_weight_is_noticed(exported, tmp_path, name):
    content = bytearray(exported[name].read_bytes())
    plain = heptad.load_model(exported["safetensors"]).model.network.fc1.weight
    at = content.index(plain.detach().contiguous().numpy().tobytes()) + 4000
    content[at] ^= 1
    (tmp_path / f"flipped{SUFFIXES[name]}").write_bytes(content)
    with pytest.raises(DamagedError, match="what it holds is not what was written"):
        heptad.load_model(tmp_path / f"flipped{SUFFIXES[name]}")


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.int64, torch.bool])
def test_weights_of_another_type_are_refused(exported, tmp_path, dtype):
    with safetensors.safe_open(exported["safetensors"], framework="pt") as file:
        texts = file.metadata()
    state = safetensors.torch.load_file(exported["safetensors"])
    state["fc3.bias"] = state["fc3.bias"].to(dtype)
    texts["sha256"] = json.dumps(digest_of(digests_of(state)))
    path = tmp_path / "odd.safetensors"
    safetensors.torch.save_file(state, path, metadata=texts)
    with pytest.raises(DamagedError, match=r"fc3.bias holds torch"):
        heptad.load_model(path)


def test_the_files_of_a_run_are_not_overwritten(small, tmp_path):
    run = shutil.copytree(small, tmp_path / "run")
    kept = run / "lenet5_digits.trained.safetensors"
    kept.write_bytes(b"as of a run whose trained part alone was saved")
    metrics = json.loads((run / "metrics.json").read_text())
    metrics["files"][kept.name] = sha256_of(kept)
    (run / "metrics.json").write_text(json.dumps(metrics))
    with pytest.raises(OutputError, match="of no file of a run"):
        heptad.export(small, "safetensors", kept)


def changed(path: Path, target: Path, **texts: str | None) -> Path:
    """Copy an ONNX file with other texts; None removes one."""
    model = onnx.load(path)
    kept = {each.key: each.value for each in model.metadata_props} | texts
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, {k: v for k, v in kept.items() if v is not None})
    target.write_bytes(model.SerializeToString())
    return target


@pytest.mark.parametrize(
    ("texts", "error", "said"),
    [
        ({"schema": None}, ModelError, "was not exported by Heptad"),
        ({"schema": "2"}, DamagedError, "has schema 2; this version of Heptad reads 1"),
        ({"classes": None}, DamagedError, "lacks 'classes'"),
        ({"classes": "{"}, DamagedError, "is damaged"),
        ({"classes": '["0", "1"]'}, ModelError, "takes and gives"),
        ({"transform": "{}"}, DamagedError, "lacks 'image_size'"),
        ({"recipe": "[]"}, DamagedError, "is damaged"),
        ({"classes": '"0123456789"'}, DamagedError, "no list of names"),
        ({"classes": '["0", "0"]'}, DamagedError, "a name is there twice"),
        ({"classes": "[" * 100_000}, DamagedError, "is damaged"),
        ({"transform": '{"image_size": Infinity}'}, DamagedError, "is damaged"),
        ({"schema": "9\nerror: all is well"}, DamagedError, r"has schema 9\\nerror: all is well;"),
    ],
)
def test_texts_that_are_not_as_written_are_refused(exported, tmp_path, texts, error, said):
    path = changed(exported["onnx"], tmp_path / "model.onnx", **texts)
    with pytest.raises(error, match=said):
        heptad.load_model(path)


@pytest.mark.parametrize("name", SUFFIXES)
def test_a_file_cut_short_at_any_place_is_refused(exported, tmp_path, name, capsys):
    content = exported[name].read_bytes()
    cut = tmp_path / f"cut{SUFFIXES[name]}"
    for length in (0, 10, len(content) // 2, len(content) - 1):
        cut.write_bytes(content[:length])
        code, _, err = said(capsys, "predict", cut, exported[name])
        assert code in (2, 5), length
        assert str(cut) in err
        assert "Traceback" not in err


def test_an_onnx_file_is_computed_on_the_cpu_or_not_at_all(exported, capsys, digit_files):
    words = ["predict", exported["onnx"], digit_files[0], "--device", "cuda"]
    code, _, err = said(capsys, *words)
    assert (code, "computed on the CPU alone" in err) == (2, True)


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_without_the_extra_one_is_told_what_to_install(exported, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingError, match=f"ONNX files need the package {package}") as caught:
        heptad.load_model(exported["onnx"])
    assert "pip install onnx onnxscript onnxruntime" in caught.value.hint


@pytest.mark.slow
def test_nothing_of_the_exporter_is_printed(small, tmp_path):
    words = [sys.executable, "-m", "heptad", "export", str(small), "--out", "model.onnx", "--json"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["format"] == "onnx"
    assert done.stderr == ""


# The large networks, at 32 pixels: the same layers at a small part of the cost.


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "last_layer", "num_images"),
    [("vgg16", "classifier.6", 300), ("resnet50", "fc", 1000)],
)
def test_the_onnx_file_of_a_large_network_agrees_on_many_test_images(
    mnist, tmp_path, monkeypatch, capsys, recipe, last_layer, num_images
):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    build = {"vgg16": vgg16, "resnet50": resnet50}[recipe]
    torch.save(build().state_dict(), "made.pth")
    words = ["train", recipe, "--weights", "made.pth", "--image-size", "32", "--epochs", "1"]
    assert main([*words, "--limit", "1000", "--out", "run", "--no-report", "--json"]) == 0
    code, out, _ = said(capsys, "export", "run", "--images", num_images, "--json")
    exported = json.loads(out)
    assert (code, exported["num_images"]) == (0, num_images)
    assert exported["largest_difference"] < 1e-4
    # And once more without any of ours: what was saved, in torchvision's own network.
    plain = build()
    parent = plain.get_submodule(last_layer.rpartition(".")[0])
    setattr(parent, last_layer.rpartition(".")[2], nn.Linear(*_sizes(plain, last_layer)))
    plain.load_state_dict(torch.load(f"run/{recipe}_mnist.pth", weights_only=True), strict=True)
    # Odd values among them.
    odd = [torch.full((1, 3, 32, 32), value) for value in (0.0, -1e3, 1e3, 1e-30)]
    inputs = torch.cat([torch.randn(3, 3, 32, 32), *odd])
    with torch.inference_mode():
        expected = plain.eval()(inputs).numpy()
    session = onnxruntime.InferenceSession(exported["file"])
    [logits] = session.run(None, {"images": inputs.numpy()})
    assert np.abs(logits - expected).max() < 1e-4 * np.abs(expected).max()


def _sizes(network: nn.Module, name: str) -> tuple[int, int]:
    return network.get_submodule(name).in_features, 10


def test_the_images_of_a_format_are_real_test_images(small, monkeypatch, tmp_path):
    """The negative control of the comparison: what it looks at are the run's own test images."""
    seen = []

    def noting(path, **options):
        model = FORMATS["onnx"].load(path, **options)
        return replace(model, model=lambda inputs: seen.append(inputs) or model.model(inputs))

    monkeypatch.setitem(
        FORMATS, "safetensors", replace(FORMATS["onnx"], load=noting, suffix=".safetensors")
    )
    heptad.export(small, "safetensors", tmp_path / "model.safetensors", num_images=20)
    assert [*islice(map(len, seen), 4)] == [1, 2, 7, 1]
    run = heptad.load_run(small)
    with torch.inference_mode():
        answers = run.model(torch.cat(seen)).argmax(1)
    # Spread over all 64.
    places = torch.arange(20) * 64 // 20
    assert torch.equal(answers, run.evaluate().logits[places].argmax(1))


def test_a_run_that_began_with_the_weights_of_the_folder_it_was_in_is_exported(
    small, digits, tmp_path, monkeypatch
):
    monkeypatch.chdir(small)
    recipe = heptad.load_recipe("lenet5", data=str(digits), weights=".", epochs=1, limit=20)
    run = heptad.train(recipe, heptad.RunOptions(out=str(tmp_path / "run")))
    heptad.export(run.folder, "safetensors", tmp_path / "model.safetensors")
    assert heptad.load_model(tmp_path / "model.safetensors").classes == tuple("0123456789")
