"""The PyTorch half of convergence.py: trains ResNet-20 on stored batches.

python torch_training.py THREADS        takes the orders of convergence.py; 0 threads: PyTorch's default

Batches lie in files of raw numbers, so that PyTorch is all that is needed.
"""

import torch
from orders import serve
from torch.nn import functional
from torch_twin import ALPHA, N, create, theirs

STATE = {}


def read(path, kind, *shape):
    """A file of raw numbers as a tensor, mapped into memory."""
    count = 1
    for size in shape:
        count *= size
    return torch.from_file(path, shared=False, size=count, dtype=kind).view(shape)


def begin(path, shapes, momentum, weight_decay):
    """Make the full-precision network with weights from a file, float32 in the order of `shapes`, and its optimizer."""
    network = create(None, False)
    parameters = dict(network.named_parameters())
    assert {theirs(name) for name in shapes} == parameters.keys()
    start = 0
    total = sum(torch.Size(shape).numel() for shape in shapes.values())
    values = read(path, torch.float32, total)
    with torch.no_grad():
        for name, shape in shapes.items():
            count = torch.Size(shape).numel()
            parameters[theirs(name)].copy_(values[start : start + count].view(shape))
            start += count
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0, momentum=momentum, weight_decay=weight_decay)
    STATE.update(network=network, optimizer=optimizer)


def train(images, labels, batch_size, rates):
    """The loss of a step on each batch of the files, with these learning rates."""
    network, optimizer = STATE["network"].train(), STATE["optimizer"]
    images = read(images, torch.float32, len(rates), batch_size, 3, 32, 32)
    labels = read(labels, torch.int64, len(rates), batch_size)
    losses = []
    for batch, truth, rate in zip(images, labels, rates, strict=True):
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        loss = functional.cross_entropy(network(batch, N, ALPHA), truth)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def evaluate(images, labels, count, batch_size):
    """The number of right answers among `count` images."""
    network = STATE["network"].eval()
    images, labels = read(images, torch.float32, count, 3, 32, 32), read(labels, torch.int64, count)
    with torch.no_grad():
        pairs = zip(images.split(batch_size), labels.split(batch_size), strict=True)
        return sum(int((network(batch, N, ALPHA).argmax(1) == truth).sum()) for batch, truth in pairs)


if __name__ == "__main__":
    serve({"begin": begin, "train": train, "evaluate": evaluate})
