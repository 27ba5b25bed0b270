"""Disks that are full, files and folders that cannot be written, memory that does not suffice."""

from __future__ import annotations

import ctypes
import json
import logging
import os
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from multiprocessing import Process
from pathlib import Path

import matplotlib
import pytest
import torch
from torch import nn

import heptad
from heptad.architectures import ARCHITECTURES, Architecture, Split
from heptad.cli import main
from heptad.errors import is_of_memory
from killing import checkpoints, fork, leftovers, metrics_of, result_of, train_words

LIBC = ctypes.CDLL(None, use_errno=True)
PAGE = resource.getpagesize()
WEIGHTS, PLOT = "lenet5_digits.pth", "lenet5_digits.png"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's /proc and mounts")


# What a process does before its command. Each is done in the process itself.


def halt_after(*words: str) -> None:
    """Halt this process each time that it has printed one of these words, until it is sent on."""
    write = sys.stdout.write

    def halting(text: str) -> int:
        count = write(text)
        if any(word in text for word in words):
            sys.stdout.flush()
            os.kill(os.getpid(), signal.SIGSTOP)
        return count

    sys.stdout.write = halting


def set_variable(name: str, value: Path) -> None:
    """Set a variable of this process: it starts with those of the first one of all tests."""
    os.environ[name] = str(value)


def enter(pid: int) -> None:
    """See the disks that another process sees."""
    with Path(f"/proc/{pid}/ns/mnt").open() as place:
        if LIBC.setns(place.fileno(), 0):
            raise OSError(ctypes.get_errno(), "setns")


def give_up_powers() -> None:
    """Be bound by permissions: root may write anywhere until it gives its capabilities up."""
    if os.geteuid() == 0 and LIBC.capset(struct.pack("Ii", 0x20080522, 0), bytes(24)):
        raise OSError(ctypes.get_errno(), "capset")


def limit_files(most_bytes: int) -> None:
    """Let no file grow larger than that; the attempt is an error, not a signal."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))


def limit_memory(further_bytes: int) -> None:
    """Leave this process so much of address space beside what it has."""
    had = int(Path("/proc/self/statm").read_text().split()[0]) * PAGE
    resource.setrlimit(resource.RLIMIT_AS, (had + further_bytes, resource.RLIM_INFINITY))


# From outside


def wait_until_halted(process: Process) -> None:
    """Wait until a process of `halt_after` has printed its words."""
    while process.is_alive():
        state = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]
        if state == "T":
            return
        time.sleep(0.001)
    raise AssertionError(f"the process ended with {process.exitcode} before it was halted")


def send_on(process: Process) -> None:
    os.kill(process.pid, signal.SIGCONT)


class Disk:
    """A small disk that processes which `enter` its holder see at `folder`; others at `seen`."""

    def __init__(self, folder: Path, holder: int) -> None:
        self.folder, self.holder = folder, holder
        self.seen = Path(f"/proc/{holder}/root{folder}")

    @property
    def free_bytes(self) -> int:
        return shutil.disk_usage(self.seen).free

    def leave(self, num_bytes: int) -> None:
        """Fill the disk up to so many bytes."""
        with (self.seen / "filler").open("ab") as file:
            os.posix_fallocate(file.fileno(), 0, self.free_bytes - num_bytes)
        assert num_bytes - PAGE < self.free_bytes <= num_bytes

    def empty(self) -> None:
        (self.seen / "filler").unlink()


@pytest.fixture
def mounting(tmp_path) -> Iterator[int]:
    """The pid of a process with mounts of its own; they are gone when it ends."""
    try:
        process = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "cat"],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
    except FileNotFoundError:
        pytest.skip("there is no unshare here")
    while process.poll() is None and Path(f"/proc/{process.pid}/comm").read_text() != "cat\n":
        time.sleep(0.001)
    if process.poll() is not None:
        pytest.skip(f"mounts of one's own are refused: {process.communicate()[1].decode()}")
    yield process.pid
    process.communicate()


def mount(holder: int, *words: str) -> None:
    """Mount something that only the holder, and who enters it, sees."""
    subprocess.run(["nsenter", "--mount", "--target", str(holder), "mount", *words], check=True)


@pytest.fixture
def disk(mounting, tmp_path) -> Disk:
    """A disk of 5 MB, of which a run takes about 2.5 with three checkpoints."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount(mounting, "-t", "tmpfs", "-o", "size=5m", "tmpfs", str(folder))
    return Disk(folder, mounting)


@pytest.fixture
def log(tmp_path) -> Path:
    """What a command says."""
    return tmp_path / "log"


def carry_out(words: list[str], log: Path, *preparations) -> int:
    process = fork(words, log, *preparations)
    process.join()
    return process.exitcode


def halted(words: list[str], log: Path, *preparations) -> Process:
    """Start a command, and give it when it has halted for the first time."""
    process = fork(words, log, *preparations)
    wait_until_halted(process)
    return process


def end(process: Process) -> int:
    send_on(process)
    process.join()
    return process.exitcode


NOT_SAVED = re.compile(
    r"WARNING: the checkpoint (\S+) could not be written: there is not enough space"
    r" \(([\d,]+) bytes needed, ([\d,]+) free\)\. The training goes on\."
)


def rooms(run: Path, *names: str) -> int:
    """Give the bytes of whole pages that these files take."""
    return sum(-(-(run / name).stat().st_size // PAGE) * PAGE for name in names)


# A full disk


@pytest.mark.slow
def test_a_disk_that_is_full_for_a_while_costs_warnings_alone(digits, straight, disk, log):
    run = disk.folder / "run"
    here = partial(enter, disk.holder)
    process = halted(train_words(digits, run), log, here, partial(halt_after, "epoch "))
    kept = checkpoints(disk.seen / "run")
    disk.leave(300_000)
    send_on(process)
    wait_until_halted(process)
    missed = NOT_SAVED.findall(log.read_text())
    # A control: not one of the second epoch's saves succeeded.
    assert [name for name, _, _ in missed] == [f"step-{step:08}" for step in range(17, 33)]
    assert checkpoints(disk.seen / "run") == kept == {"step-00000015", "step-00000016"}
    assert leftovers(disk.seen / "run") == []
    for _, needed, free in missed:
        assert int(free.replace(",", "")) <= 300_000 < 740_000 < int(needed.replace(",", ""))
    disk.empty()
    assert end(process) == 0
    assert result_of(disk.seen / "run") == result_of(straight)
    assert "step-00000032-tested" in checkpoints(disk.seen / "run")


@pytest.mark.slow
def test_a_disk_that_stays_full_ends_the_run_with_3_and_a_resume_finishes_it(
    digits, straight, disk, log
):
    run = disk.folder / "run"
    here = partial(enter, disk.holder)
    process = halted(train_words(digits, run), log, here, partial(halt_after, "epoch 1"))
    disk.leave(100_000)
    assert end(process) == 3
    assert f"{run / WEIGHTS} could not be written: No space left on device" in log.read_text()
    assert "Saved in" not in log.read_text()
    assert leftovers(disk.seen / "run") == []
    assert not (disk.seen / "run" / "metrics.json").exists()
    disk.empty()
    assert carry_out(["resume", str(run)], log, here) == 0
    assert "Going on after step 16." in log.read_text()
    assert result_of(disk.seen / "run") == result_of(straight)


@pytest.mark.slow
def test_a_stop_on_a_full_disk_ends_with_3_and_keeps_the_checkpoint_before(
    digits, straight, disk, log
):
    run = disk.folder / "run"
    here = partial(enter, disk.holder)
    process = halted(train_words(digits, run), log, here, partial(halt_after, "epoch 1"))
    disk.leave(100_000)
    os.kill(process.pid, signal.SIGTERM)
    assert end(process) == 3
    assert "error: the checkpoint step-00000016-tested could not be written" in (log.read_text())
    disk.empty()
    assert carry_out(["resume", str(run)], log, here) == 0
    assert "Going on after step 16." in log.read_text()
    assert result_of(disk.seen / "run") == result_of(straight)


@pytest.mark.slow
def test_a_disk_that_is_full_at_once_is_named_and_nothing_is_left_there(digits, disk, log):
    disk.leave(0)
    words = train_words(digits, disk.folder / "run")
    assert carry_out(words, log, partial(enter, disk.holder)) == 3
    assert "recipe.json could not be written: No space left on device" in log.read_text()
    assert [path.name for path in disk.seen.iterdir()] == ["filler"]


@pytest.mark.slow
def test_a_disk_with_room_is_not_complained_of(digits, straight, disk, log):
    """The control of all tests with a small disk: it is large enough for a run."""
    words = train_words(digits, disk.folder / "run")
    assert carry_out(words, log, partial(enter, disk.holder)) == 0
    assert "could not" not in log.read_text()
    assert result_of(disk.seen / "run") == result_of(straight)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fitting", "missing"),
    [
        ([WEIGHTS], "predictions.npz"),
        ([WEIGHTS, "predictions.npz"], "epochs.csv"),
        ([WEIGHTS, "predictions.npz", "epochs.csv"], "metrics.json"),
    ],
)
def test_a_disk_that_fills_while_results_are_written_keeps_the_weights_and_names_what_lacks(
    digits, straight, disk, log, fitting, missing
):
    run, here = disk.folder / "run", partial(enter, disk.holder)
    process = halted(train_words(digits, run), log, here, partial(halt_after, "epoch 2"))
    disk.leave(rooms(straight, *fitting))
    assert end(process) == 3
    assert f"error: {run / missing} could not be written: No space left" in log.read_text()
    assert (disk.seen / "run" / WEIGHTS).read_bytes() == (straight / WEIGHTS).read_bytes()
    assert leftovers(disk.seen / "run") == []
    disk.empty()
    assert carry_out(["resume", str(run)], log, here) == 0
    assert result_of(disk.seen / "run") == result_of(straight)


@pytest.mark.slow
def test_a_plot_that_finds_no_room_costs_a_warning_alone(digits, straight, disk, log):
    run, here = disk.folder / "run", partial(enter, disk.holder)
    process = halted(train_words(digits, run), log, here, partial(halt_after, "epoch 2"))
    disk.leave(rooms(straight, WEIGHTS, "predictions.npz", "epochs.csv", "metrics.json") + PAGE)
    assert end(process) == 0
    assert f"the plot {PLOT} could not be made: {run / PLOT} could not be written" in (
        log.read_text()
    )
    assert f"Saved in {run}" in log.read_text()
    assert not (disk.seen / "run" / PLOT).exists()
    assert main(["verify", str(disk.seen / "run")]) == 0


@pytest.mark.slow
def test_a_log_that_finds_no_room_is_written_when_there_is_some(digits, straight, disk, log):
    run, here = disk.folder / "run", partial(enter, disk.holder)
    halts = partial(halt_after, "The network starts", "epoch 1")
    process = halted(train_words(digits, run), log, here, halts)
    disk.leave(0)
    send_on(process)
    wait_until_halted(process)
    assert log.read_text().count("metrics.jsonl cannot be written: No space left on device") == 1
    assert (disk.seen / "run" / "metrics.jsonl").read_bytes() == b""
    disk.empty()
    assert end(process) == 0
    assert result_of(disk.seen / "run") == result_of(straight)


@pytest.mark.slow
def test_a_log_that_cannot_be_written_at_the_end_is_named_and_the_weights_are_there(
    digits, straight, tmp_path, log
):
    run = tmp_path / "run"
    process = halted(train_words(digits, run), log, partial(halt_after, "epoch 2"))
    (run / "metrics.jsonl").rename(run / "kept.jsonl")
    (run / "metrics.jsonl").mkdir()
    assert end(process) == 3
    assert f"error: {run / 'metrics.jsonl'} could not be written: Is a directory" in (
        log.read_text()
    )
    assert (run / WEIGHTS).read_bytes() == (straight / WEIGHTS).read_bytes()
    (run / "metrics.jsonl").rmdir()
    (run / "kept.jsonl").rename(run / "metrics.jsonl")
    assert carry_out(["resume", str(run)], log) == 0
    assert result_of(run) == result_of(straight)


# A limit on the size of files


@pytest.mark.slow
def test_files_that_may_not_grow_to_20_kb_end_with_3_and_none_is_left_half_written(
    digits, straight, tmp_path, log
):
    run = tmp_path / "run"
    assert carry_out(train_words(digits, run), log, partial(limit_files, 20_000)) == 3
    said = log.read_text()
    assert said.count("could not be written: File too large") == 32 + 1 + 1
    assert f"error: {run / WEIGHTS} could not be written: File too large" in said
    assert "Saved in" not in said
    assert checkpoints(run) == set()
    assert leftovers(run) == []
    # No checkpoint remembers the number of threads.
    assert carry_out(["resume", str(run), "--threads", "1"], log) == 0
    assert result_of(run) == result_of(straight)


@pytest.mark.slow
def test_files_that_may_not_grow_to_300_kb_cost_the_checkpoints_alone(
    digits, straight, tmp_path, log
):
    run = tmp_path / "run"
    assert carry_out(train_words(digits, run), log, partial(limit_files, 300_000)) == 0
    assert log.read_text().count("could not be written: File too large") == 32 + 1
    assert checkpoints(run) == set()
    assert leftovers(run) == []
    assert result_of(run) == result_of(straight)


# Places that cannot be written


def _closed(place: Path) -> None:
    place.mkdir(mode=0o555)


def _without_entry(place: Path) -> None:
    place.mkdir(mode=0o200)


def _a_file(place: Path) -> None:
    place.write_text("in the way")


@pytest.mark.parametrize(
    ("make", "below"),
    [
        (_closed, ""),
        (_without_entry, "run"),
        (_a_file, "runs/of/mine"),
        *(
            pytest.param(make, below, marks=pytest.mark.slow)
            for make in (_closed, _without_entry, _a_file)
            for below in ("", "run", "runs/of/mine")
        ),
    ],
)
def test_a_place_that_cannot_be_written_is_found_before_the_first_batch(
    digits, tmp_path, log, make, below
):
    make(tmp_path / "place")
    run = tmp_path / "place" / below
    assert carry_out(train_words(digits, run), log, give_up_powers) == 2
    (said,) = log.read_text().splitlines()
    assert said.startswith((f"error: no run folder can be made at {run}: ", f"error: {run}: Perm"))
    assert set(tmp_path.rglob("*")) == {log, tmp_path / "place"}


@pytest.mark.slow
def test_a_link_to_nowhere_is_no_place_for_a_run(digits, tmp_path, log):
    (tmp_path / "place").symlink_to("nowhere")
    assert carry_out(train_words(digits, tmp_path / "place"), log) == 2
    assert "no run folder can be made" in log.read_text()


def test_a_disk_that_is_read_only_is_found_before_the_first_batch(digits, disk, log):
    mount(disk.holder, "-o", "remount,ro", str(disk.folder))
    words = train_words(digits, disk.folder / "run")
    assert carry_out(words, log, partial(enter, disk.holder)) == 2
    assert f"{disk.folder} cannot be written" in log.read_text()
    assert "The network starts" not in log.read_text()


@pytest.mark.slow
def test_a_folder_with_permission_is_written_without_any_power(digits, straight, tmp_path, log):
    """The control of all tests with permissions: it is they that are in the way."""
    assert carry_out(train_words(digits, tmp_path / "run"), log, give_up_powers) == 0
    assert result_of(tmp_path / "run") == result_of(straight)


@pytest.mark.parametrize("mode", [0o555, pytest.param(0o000, marks=pytest.mark.slow)], ids=oct)
def test_permission_lost_while_training_ends_with_3_and_a_resume_finishes(
    digits, straight, tmp_path, log, mode
):
    run = tmp_path / "run"
    process = halted(train_words(digits, run), log, give_up_powers, partial(halt_after, "epoch 1"))
    (run / "checkpoints").chmod(mode)
    run.chmod(mode)
    assert end(process) == 3
    said = log.read_text()
    run.chmod(0o755)
    (run / "checkpoints").chmod(0o755)
    # The training went on, and warned each time.
    assert "epoch 2/2" in said
    assert said.count("WARNING: ") == 17
    assert said.count("Permission denied") >= 17
    assert f"error: {run / WEIGHTS} could not be written: Permission denied" in said
    assert "Saved in" not in said
    assert checkpoints(run) == {"step-00000015", "step-00000016"}
    assert carry_out(["resume", str(run)], log, give_up_powers) == 0
    assert result_of(run) == result_of(straight)


@pytest.mark.slow
def test_permission_lost_for_the_checkpoints_alone_costs_warnings(digits, straight, tmp_path, log):
    run = tmp_path / "run"
    process = halted(train_words(digits, run), log, give_up_powers, partial(halt_after, "epoch 1"))
    (run / "checkpoints").chmod(0o000)
    assert end(process) == 0
    (run / "checkpoints").chmod(0o755)
    assert log.read_text().count("WARNING: the checkpoint ") == 17
    assert checkpoints(run) == {"step-00000015", "step-00000016"}
    assert result_of(run) == result_of(straight)


@pytest.mark.slow
def test_a_run_folder_deleted_while_training_ends_with_3_and_none_is_made_anew(
    digits, tmp_path, log
):
    run = tmp_path / "run"
    process = halted(train_words(digits, run), log, partial(halt_after, "epoch 1"))
    shutil.rmtree(run)
    assert end(process) == 3
    said = log.read_text()
    assert "metrics.jsonl could not be written: No such file or directory" in said
    assert f"error: {run / WEIGHTS} could not be written: No such file or directory" in said
    assert "Saved in" not in said
    assert not run.exists()


# Plots


@pytest.mark.slow
def test_without_a_single_font_the_run_is_as_good_as_ever(
    digits, straight, tmp_path, mounting, log
):
    fonts = [Path(matplotlib.get_data_path()) / "fonts", Path("/usr/share/fonts")]
    for folder in filter(Path.is_dir, fonts):
        mount(mounting, "-t", "tmpfs", "tmpfs", str(folder))
    # A list of fonts of its own too: it is kept where matplotlib keeps the user's.
    own = partial(set_variable, "MPLCONFIGDIR", tmp_path / "matplotlib")
    run = tmp_path / "run"
    assert carry_out(train_words(digits, run), log, own, partial(enter, mounting)) == 0
    assert f"the plot {PLOT} could not be made: " in log.read_text()
    assert not (run / PLOT).exists()
    for name in (WEIGHTS, "metrics.jsonl", "predictions.npz"):
        assert (run / name).read_bytes() == (straight / name).read_bytes()
    assert main(["verify", str(run)]) == 0


# Memory


class Wide(nn.Module):
    """A network whose one frozen layer makes `width` maps of each image."""

    def __init__(self, num_classes: int, *, width: int):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, padding=1)
        self.fc = nn.Linear(width, num_classes)

    def forward(self, x):
        return self.fc(Mean()(self.conv(x)))


class Mean(nn.Module):
    def forward(self, x):
        return x.relu().mean((2, 3))


def wide(width: int) -> Architecture:
    """Give the network as the recipes name it, its trunk all but the last layer."""

    def trunk(network: Wide) -> nn.Module:
        return nn.Sequential(network.conv, Mean())

    return Architecture(
        name="wide",
        build=lambda _, num_classes: Wide(num_classes, width=width),
        last_layer="fc",
        channels=(3,),
        image_sizes=range(32, 385),
        splits=(Split("before fc", trunk, lambda network: network.fc),),
    )


def add_wide(home: Path) -> None:
    """Let this process know the network, and keep what it computes in a folder of its own."""
    ARCHITECTURES["wide"] = wide(1024)
    set_variable("HEPTAD_HOME", home)


@pytest.fixture
def wide_recipe(digits, tmp_path, monkeypatch):
    monkeypatch.setitem(ARCHITECTURES, "wide", wide(8))
    monkeypatch.setenv("HEPTAD_HOME", str(tmp_path / "home"))
    return heptad.load_recipe(
        "resnet50",
        **{"architecture": "wide", "data": str(digits), "weights": "none"},
        **{"image_size": 32, "limit": 45, "epochs": 1},
    )


def failing(num_images: int, act):
    """Give a hook of a layer that acts if more images come."""

    def hook(module, inputs) -> None:
        if len(inputs[0]) > num_images:
            act(len(inputs[0]))

    return hook


def ask_for_too_much(num_images: int) -> None:
    """Ask PyTorch for more memory than any machine has."""
    torch.empty(1 << 50)


def features_of(cycle) -> torch.Tensor:
    sources = cycle.sources.train, cycle.sources.test
    return torch.cat([source.take(torch.arange(len(source.ids)), None) for source in sources])


@pytest.mark.parametrize(
    ("settings", "batch_size", "num_fitting"),
    [
        # 45 images to train on and 45 to test with are one batch.
        *(({}, 90, num_fitting) for num_fitting in (89, 44, 20, 7, 1)),
        # Batches of the fewest images that there are.
        pytest.param({"image_size": 384, "limit": 50}, 4, 3, marks=pytest.mark.slow),
    ],
)
def test_the_trunks_pass_takes_smaller_batches_where_memory_runs_out(
    wide_recipe, tmp_path, monkeypatch, caplog, settings, batch_size, num_fitting
):
    recipe = wide_recipe.changed(**settings)
    network = heptad.prepare(recipe).whole.network
    expected = features_of(heptad.prepare(recipe, network=network))
    monkeypatch.setenv("HEPTAD_HOME", str(tmp_path / "other"))
    network.conv.register_forward_pre_hook(failing(num_fitting, ask_for_too_much))
    with caplog.at_level(logging.WARNING, logger="heptad"):
        cycle = heptad.prepare(recipe, network=network)
    assert cycle.num_computed == 2 * recipe.limit
    assert torch.allclose(features_of(cycle), expected, rtol=1e-5)
    # A control: rows in another order would be seen.
    assert not torch.allclose(expected.roll(1, 0), expected, rtol=1e-2)
    # Of many pixels the pass says first that rewriting the network failed for the same reason.
    *earlier, said = [record.message for record in caplog.records]
    assert all("runs the network as it is; rewritten, it fails" in each for each in earlier)
    assert f"memory does not suffice for {batch_size} images at a time" in said


def test_a_trunk_that_has_no_memory_for_one_image_says_so(wide_recipe):
    network = heptad.prepare(wide_recipe, heptad.RunOptions(trunk="off")).whole.network
    network.conv.register_forward_pre_hook(failing(0, ask_for_too_much))
    with pytest.raises(RuntimeError) as raised:
        heptad.prepare(wide_recipe, network=network)
    assert is_of_memory(raised.value)


def test_what_has_nothing_to_do_with_memory_is_not_tried_again(wide_recipe):
    network = heptad.prepare(wide_recipe, heptad.RunOptions(trunk="off")).whole.network
    seen = []

    def fail(num_images: int) -> None:
        seen.append(num_images)
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    network.conv.register_forward_pre_hook(failing(0, fail))
    with pytest.raises(RuntimeError, match="mat1"):
        heptad.prepare(wide_recipe, network=network)
    assert seen == [90]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 8.98 GB"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried"), True),
        (MemoryError(), True),
        (OSError(12, "Cannot allocate memory", "/dev/shm/x"), True),
        (OSError(28, "No space left on device"), False),
        (RuntimeError("CUDA error: device-side assert triggered"), False),
        (ValueError("there is a sign that says out of memory"), False),
    ],
    ids=str,
)
def test_errors_of_memory_are_told_from_others(error, expected):
    assert is_of_memory(error) is expected


@pytest.fixture
def wide_words(wide_recipe, tmp_path) -> list[str]:
    recipe = wide_recipe.changed(image_size=64, limit=64)
    (tmp_path / "wide.json").write_text(json.dumps(recipe.model_dump()))
    return ["train", str(tmp_path / "wide.json"), "--threads", "1"]


@pytest.mark.slow
def test_in_little_memory_the_pass_takes_fewer_images_and_the_result_is_the_same(
    wide_words, tmp_path, log
):
    """128 images make 2,147 MB, 8 make 134."""
    little, enough = tmp_path / "little", tmp_path / "enough"
    made = [partial(add_wide, tmp_path / "one"), partial(limit_memory, 300_000_000)]
    assert carry_out([*wide_words, "--out", str(little)], log, *made) == 0, log.read_text()
    assert "memory does not suffice for 128 images at a time" in log.read_text()
    # A control: with enough of it nothing is said.
    made = [partial(add_wide, tmp_path / "other")]
    assert carry_out([*wide_words, "--out", str(enough)], log, *made) == 0
    assert "128 of 128 images had to pass it" in log.read_text()
    assert "does not suffice" not in log.read_text()
    losses = [metrics_of(run)["test_loss"] for run in (little, enough)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.slow
def test_a_step_that_has_too_little_memory_ends_with_6_and_says_what_to_lower(
    wide_words, tmp_path, log
):
    words = [*wide_words, "--trunk", "off", "--out", str(tmp_path / "run")]
    made = [partial(add_wide, tmp_path / "home"), partial(limit_memory, 300_000_000)]
    assert carry_out(words, log, *made) == 6
    assert "error: there is not enough memory for this" in log.read_text()
    assert "a smaller --batch-size or --memory needs less" in log.read_text()
    assert "Traceback" not in log.read_text()
