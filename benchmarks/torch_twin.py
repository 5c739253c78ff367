"""ResNet-20 of src/models/resnet20.py in PyTorch: the same network, method and optimizer, written for speed.

python torch_twin.py THREADS        takes the orders of training_step.py; 0 threads: PyTorch's default

Signs by compare and cast, slopes from relu, the Fourier derivative in closed form. n and alpha are tensors, so nothing
recompiles when they change. Needs PyTorch only.
"""

import math
import sys

from orders import peak_memory, serve, timed, use_cores

use_cores(int(sys.argv[1]))

import torch  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

if int(sys.argv[1]):
    torch.set_num_threads(int(sys.argv[1]))
IMPORTED = peak_memory()
OMEGA = 0.1
AMPLITUDE = 0.1  # of the noise's sine
REDUCTION = 64
N, ALPHA = torch.tensor(18.0), torch.tensor(0.1)


def sign(t):
    return (t > 0).to(t.dtype) * 2 - 1


def fourier_derivative(t, n):
    """4 omega/pi * sum_{i=0..n} cos((2i+1) omega t) in closed form."""
    u = t * (OMEGA / math.pi)  # omega t is k half-turns and a rest u
    k = u.round()
    u = u.sub_(k).abs_().add_(1e-12)  # the kernel is even in u; the offset gives the limit at 0
    sines = (u * (2 * math.pi * (n + 1))).sin_() / u.mul_(math.pi).sin_()
    return sines.mul_(k.remainder_(2).mul_(-4 * OMEGA / math.pi).add_(2 * OMEGA / math.pi))


class SignFourier(torch.autograd.Function):
    @staticmethod
    def forward(ctx, t, n):
        ctx.save_for_backward(t, n)
        return sign(t)

    @staticmethod
    def backward(ctx, gradient):
        return fourier_derivative(*ctx.saved_tensors).mul_(gradient), None


class SignClipped(torch.autograd.Function):
    """The clipped straight-through estimator."""

    @staticmethod
    def forward(ctx, t, n):
        ctx.save_for_backward(t)
        return sign(t)

    @staticmethod
    def backward(ctx, gradient):
        return gradient * (ctx.saved_tensors[0].abs() <= 1), None


class ScaleForward(torch.autograd.Function):
    """z * scale, where the scale does not multiply the gradient, as in the released FDA-BNN code."""

    @staticmethod
    def forward(ctx, z, scale):
        return z * scale

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None


class Noise(nn.Module):
    """e(t) = ReLU(t W1) W2 + a sin(t) for rows of t (rows, d), or for the positions of t (N, d, H, W)."""

    def __init__(self, dimension):
        super().__init__()
        hidden = max(1, dimension // REDUCTION)
        self.w1 = nn.Parameter(torch.randn(dimension, hidden) * 0.01)
        self.w2 = nn.Parameter(torch.randn(hidden, dimension) * 0.01)

    def forward(self, t):
        if t.ndim == 2:
            e = (t @ self.w1).relu() @ self.w2
        else:
            hidden = functional.conv2d(t, self.w1.t()[:, :, None, None]).relu()
            e = functional.conv2d(hidden, self.w2.t()[:, :, None, None])
        return e + AMPLITUDE * t.sin()


class BinaryConv(nn.Module):
    """3x3 convolution of sign(x) and mean|w| sign(w), each with alpha e(t) added to the sign if there is noise.

    Without an estimator it is a convolution of x and w.
    """

    def __init__(self, in_channels, out_channels, stride, estimator, noise):
        super().__init__()
        self.stride = stride
        self.estimator = estimator and estimator.apply
        self.weight = nn.Parameter(
            torch.empty(out_channels, in_channels, 3, 3).uniform_(-1, 1) / math.sqrt(9 * in_channels)
        )
        self.noise_x = Noise(in_channels) if noise else None
        self.noise_w = Noise(9 * in_channels) if noise else None

    def forward(self, x, n, alpha):
        if self.estimator is None:
            return functional.conv2d(x, self.weight, stride=self.stride, padding=1)
        signs, z = self.estimator(x, n), self.estimator(self.weight, n)
        if self.noise_x is not None:
            signs = signs + alpha * self.noise_x(x)
            z = z + alpha * self.noise_w(self.weight.flatten(1)).view_as(z)
        scale = self.weight.detach().abs().mean()
        return functional.conv2d(signs, ScaleForward.apply(z, scale), stride=self.stride, padding=1)


class Slope(nn.Module):
    """PReLU with one slope for all channels."""

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.tensor([0.25]))

    def forward(self, x):
        positive = x.relu()
        return positive + (x - positive) * self.a


class Block(nn.Module):
    def __init__(self, in_channels, out_channels, stride, estimator, noise):
        super().__init__()
        self.stride, self.added = stride, (out_channels - in_channels) // 2
        self.conv1 = BinaryConv(in_channels, out_channels, stride, estimator, noise)
        self.relu1, self.bn1 = Slope(), nn.BatchNorm2d(out_channels)
        self.conv2 = BinaryConv(out_channels, out_channels, 1, estimator, noise)
        self.relu2, self.bn2 = Slope(), nn.BatchNorm2d(out_channels)

    def forward(self, x, n, alpha):
        y = self.bn1(self.relu1(self.conv1(x, n, alpha)))
        y = self.bn2(self.relu2(self.conv2(y, n, alpha)))
        if self.stride == 2:
            x = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.added, self.added))
        return y + x


class ResNet20(nn.Module):
    def __init__(self, estimator, noise):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        channels = 16
        for number, (out_channels, stride) in enumerate(((16, 1), (32, 2), (64, 2)), start=1):
            blocks = nn.ModuleList()
            for strides in (stride, 1, 1):
                blocks.append(Block(channels, out_channels, strides, estimator, noise))
                channels = out_channels
            setattr(self, f"layer{number}", blocks)
        self.linear = nn.Linear(64, 10)

    def forward(self, x, n, alpha):
        x = self.bn1(self.conv1(x))
        for block in (*self.layer1, *self.layer2, *self.layer3):
            x = block(x, n, alpha)
        return self.linear(x.relu().mean((2, 3)))


def create(estimator, noise):
    return ResNet20({"fda": SignFourier, "clipped_ste": SignClipped, None: None}[estimator], noise)


def theirs(name):
    """The name here of a parameter of the MindSpore network."""
    for ours, own in (
        (".gamma", ".weight"),
        (".beta", ".bias"),
        ("activation_quantizer.noise.adaptation", "noise_x"),
        ("weight_quantizer.noise.adaptation", "noise_w"),
    ):
        name = name.replace(ours, own)
    return name


STEPS = {}  # by name: a function that takes a training step


def build(name, batch_size, estimator, noise, compiled):
    """Prepare the training step called `name` and take it once. None, or why it fails: torch.compile needs a C++
    compiler."""
    torch.manual_seed(0)
    network = create(estimator, noise).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-6, momentum=0.9, weight_decay=1e-4)
    images, labels = torch.randn(batch_size, 3, 32, 32), torch.randint(0, 10, (batch_size,))
    forward = torch.compile(network) if compiled else network

    def step():
        optimizer.zero_grad()
        loss = functional.cross_entropy(forward(images, N, ALPHA), labels)
        loss.backward()
        optimizer.step()
        return loss.item()

    try:
        step()
    except Exception as error:  # any: torch.compile has many
        return str(error).strip().partition("\n")[0] or type(error).__name__
    STEPS[name] = step


def train(name, count):
    """Seconds of each of `count` training steps."""
    return timed(STEPS[name], count)


def gradients(estimator, noise, weights, batch):
    """Loss, logits, and gradients by the MindSpore network's names, for these weights and this batch."""
    network = create(estimator, noise).train()
    parameters = dict(network.named_parameters())
    with torch.no_grad():
        for name, values in weights.items():
            parameters[theirs(name)].copy_(torch.tensor(values))
    logits = network(torch.tensor(batch["images"]), N, ALPHA)
    loss = functional.cross_entropy(logits, torch.tensor(batch["labels"]))
    loss.backward()
    found = {name: parameters[theirs(name)].grad.tolist() for name in weights}
    return {"loss": loss.item(), "logits": logits.tolist(), "gradients": found}


def memory():
    """Bytes after the imports, and at the peak so far."""
    return IMPORTED, peak_memory()


if __name__ == "__main__":
    serve({"build": build, "train": train, "gradients": gradients, "memory": memory})
