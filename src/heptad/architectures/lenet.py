"""LeNet-5 in its usual modern form: 61,706 parameters with one channel and ten classes.

The network of the paper (LeCun, Bottou, Bengio and Haffner 1998, doi:10.1109/5.726791, figure 2)
is another one: 60,000 trainable parameters, a sparse C3, trainable subsampling, scaled tanh and
RBF outputs. This one has its layer sizes with a full C3, max-pooling, ReLU and a linear output.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import max_pool2d, relu


class LeNet5(nn.Module):
    """Two convolutions with pooling, three linear layers; images [N, C, 32, 32] to logits [N, K].

    Layer by layer, with one channel: C1 156 parameters, C3 2,416, C5 48,120, F6 10,164 and with
    ten classes 850 for the output.
    """

    def __init__(self, num_classes: int = 10, *, in_channels: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 6, kernel_size=5)  # C1: 32 -> 28 px
        self.conv2 = nn.Conv2d(6, 16, kernel_size=5)  # C3: 14 -> 10 px
        self.fc1 = nn.Linear(16 * 5 * 5, 120)  # C5
        self.fc2 = nn.Linear(120, 84)  # F6
        self.fc3 = nn.Linear(84, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Give logits [N, K] for images [N, C, 32, 32]."""
        # The maximum of rectified values is the rectified maximum, to the bit, and ReLU after the
        # pooling has a quarter of the values to touch.
        maps = relu(max_pool2d(self.conv1(images), 2))
        maps = relu(max_pool2d(self.conv2(maps), 2))
        values = relu(self.fc1(maps.flatten(1)))
        logits: Tensor = self.fc3(relu(self.fc2(values)))
        return logits
