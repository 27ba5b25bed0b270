"""LeNet-5 as its paper has it, with 60,000 trainable parameters; `lenet.py` is its modern form.

LeCun, Bottou, Bengio and Haffner 1998, doi:10.1109/5.726791, section II: subsampling that is
trained, a C3 that sees some of the maps of S2, a scaled tanh after every layer, and as output the
distances to ten fixed codes, one a digit.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, conv2d

# Of the squashing function A tanh(S a), which is 1 at 1 and -1 at -1: the paper's appendix A.
AMPLITUDE, SLOPE = 1.7159, 2 / 3
# Start values are drawn from -2.4/F to 2.4/F, F the number of a unit's inputs.
START = 2.4

# Which maps of S2 (rows) each map of C3 (columns) sees: the paper's table I.
TABLE = """
X...XXX..XXXX.XX
XX...XXX..XXXX.X
XXX...XXX..X.XXX
.XXX..XXXX..X.XX
..XXX..XXXX.XX.X
...XXX..XXXX.XXX
"""

# What F6 should say of each digit, as pictures of 7 x 12: the paper's figure 3. The bars over some
# tell them from letters that look alike.
DIGITS = """
.#####. ...##.. .#####. ####### .#####.
....... ..###.. ....... .....## .......
..###.. .####.. .#####. ....##. .......
.##.##. ...##.. ##...## ...##.. .##..##
##...## ...##.. #....## ..####. .##..##
##...## ...##.. ....##. .....## ###..##
##...## ...##.. ..###.. .....## ##...##
##...## ...##.. .##.... .....## ##...##
.##.##. ...##.. ##..... ##...## ##..###
..###.. .###### ####### .#####. .######
....... ....... ....... ....... .....##
....... ....... ....... ....... .....##

.#####. ..####. ####### .#####. .#####.
....... .##.... .....## ##...## ##..###
####### ##..... .....## ##...## ##...##
##..... ##..... ....##. ##...## ##...##
##..... ######. ...##.. .#####. ##..###
.####.. ###..## ...##.. ##...## .######
..####. ##...## ..##... ##...## .....##
.....## ##...## ..##... ##...## .....##
##...## ###..## ..##... ##...## ....##.
.#####. .#####. ..##... .#####. .####..
....... ....... ....... ....... .......
....... ....... ....... ....... .......
"""
NUM_DIGITS = 10


def digit_codes() -> Tensor:
    """Give the picture of each digit as a row: float [10, 84], 1 for ink and -1 for paper."""
    rows = [line.split() for line in DIGITS.splitlines() if line]
    pictures = [
        "".join(row[column] for row in half)
        for half in (rows[:12], rows[12:])
        for column in range(5)
    ]
    return torch.tensor([[1.0 if cell == "#" else -1.0 for cell in each] for each in pictures])


def squash(sums: Tensor) -> Tensor:
    """Give A tanh(S a) of each sum a."""
    return AMPLITUDE * torch.tanh(SLOPE * sums)


class Subsampling(nn.Module):
    """Each 2 x 2 of a map added up, times the map's coefficient, plus its bias."""

    def __init__(self, num_maps: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(_drawn(torch.empty(num_maps), num_inputs=2 * 2))
        self.bias = nn.Parameter(_drawn(torch.empty(num_maps), num_inputs=2 * 2))

    def forward(self, maps: Tensor) -> Tensor:
        """Give sums [N, C, H/2, W/2] for maps [N, C, H, W]."""
        # Four means make a sum, and four coefficients are less work than four maps.
        coefficients = (4 * self.weight).view(-1, 1, 1)
        return avg_pool2d(maps, 2) * coefficients + self.bias.view(-1, 1, 1)


class SparseConvolution(nn.Module):
    """A convolution each of whose maps sees some of the input maps: one kernel a connection.

    table: its connections as rows of text, one an input map, with an X where there is one.
    """

    places: Tensor

    def __init__(self, table: str, *, kernel_size: int) -> None:
        super().__init__()
        columns = list(zip(*table.split(), strict=True))
        self.num_maps, self.num_inputs = len(columns), len(columns[0])
        places: list[int] = []
        kernels, biases = [], []
        for k, column in enumerate(columns):
            seen = [i for i, cell in enumerate(column) if cell == "X"]
            places += [k * self.num_inputs + i for i in seen]
            shape, num_values = (len(seen), kernel_size, kernel_size), len(seen) * kernel_size**2
            kernels.append(_drawn(torch.empty(shape), num_inputs=num_values))
            biases.append(_drawn(torch.empty(1), num_inputs=num_values))
        self.weight = nn.Parameter(torch.cat(kernels))
        self.bias = nn.Parameter(torch.cat(biases))
        # Of each kernel among those of a convolution that sees all. It is saved with the weights:
        # a network is also built without values, and then all come from a file.
        self.register_buffer("places", torch.tensor(places))

    def forward(self, maps: Tensor) -> Tensor:
        """Give maps [N, 16, H-4, W-4] for maps [N, 6, H, W], with table I and kernels of 5 x 5."""
        # One product with kernels of zero among the others is faster than sixteen small ones.
        kernels = self.weight.new_zeros(self.num_maps * self.num_inputs, *self.weight.shape[1:])
        kernels = kernels.index_copy(0, self.places, self.weight)
        shape = (self.num_maps, self.num_inputs, *self.weight.shape[1:])
        return conv2d(maps, kernels.view(shape), self.bias)


class DigitCodes(nn.Module):
    """Ten radial basis units, whose centres are the codes of the digits and are not trained."""

    codes: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("codes", torch.empty(NUM_DIGITS, 7 * 12))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fill in the codes, which nothing else changes."""
        self.codes.copy_(digit_codes())

    def forward(self, values: Tensor) -> Tensor:
        """Give logits [N, 10] for values [N, 84]: minus the squared distances to the codes."""
        return -(values[:, None] - self.codes).square().sum(2)


class LeNet5Of1998(nn.Module):
    """The paper's LeNet-5; images [N, 1, 32, 32] to logits [N, 10].

    Layer by layer: C1 156 parameters, S2 12, C3 1,516, S4 32, C5 48,120 and F6 10,164.
    """

    def __init__(self) -> None:
        super().__init__()
        self.c1 = nn.Conv2d(1, 6, kernel_size=5)  # 32 -> 28 px
        self.s2 = Subsampling(6)
        self.c3 = SparseConvolution(TABLE, kernel_size=5)  # 14 -> 10 px
        self.s4 = Subsampling(16)
        # A convolution over all of its input.
        self.c5 = nn.Linear(16 * 5 * 5, 120)
        self.f6 = nn.Linear(120, 84)
        self.output = DigitCodes()
        for layer in (self.c1, self.c5, self.f6):
            for parameter in layer.parameters():
                _drawn(parameter, num_inputs=layer.weight[0].numel())

    def forward(self, images: Tensor) -> Tensor:
        """Give logits [N, 10] for images [N, 1, 32, 32]."""
        maps = squash(self.s2(squash(self.c1(images))))
        maps = squash(self.s4(squash(self.c3(maps))))
        values = squash(self.f6(squash(self.c5(maps.flatten(1)))))
        logits: Tensor = self.output(values)
        return logits


def _drawn(values: Tensor, *, num_inputs: int) -> Tensor:
    """Fill `values`, which belong to units of so many inputs, with draws, and give them back."""
    return nn.init.uniform_(values, -START / num_inputs, START / num_inputs)
