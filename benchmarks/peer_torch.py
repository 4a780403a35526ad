"""PyTorch at its best on the same device: the same networks, channels last, compiled where that works."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

INSTALLED = find_spec("torch") is not None
PER_EXAMPLE_CHUNK = 16  # examples whose whole gradients are held at once: 16 of ResNet-18 are 0.7 GB

Work = Callable[[], Any]


def device() -> str:
    """Of PyTorch; 'cuda' where it has one."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def resnet18(width: int = 64) -> Any:
    """ResNet-18 for 32x32 images, as `models.ResNet`."""
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self, inputs: int, filters: int, stride: int):
            super().__init__()
            layers = [nn.Conv2d(inputs, filters, 3, stride, 1, bias=False), nn.BatchNorm2d(filters), nn.ReLU()]
            layers += [nn.Conv2d(filters, filters, 3, 1, 1, bias=False), nn.BatchNorm2d(filters)]
            self.branch = nn.Sequential(*layers)
            projection = (nn.Conv2d(inputs, filters, 1, stride, bias=False), nn.BatchNorm2d(filters))
            self.skip = nn.Identity() if inputs == filters else nn.Sequential(*projection)

        def forward(self, x):
            return torch.relu(self.branch(x) + self.skip(x))

    layers, inputs = [nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()], width
    for stage in range(4):
        for position in range(2):
            layers.append(Block(inputs, width << stage, 2 if stage and not position else 1))
            inputs = width << stage
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 10))


def simple_cnn(width: int = 32) -> Any:
    """As `models.SimpleCNN`."""
    from torch import nn

    layers, inputs = [], 3
    for level in range(3):
        for stride in (1, 2):
            layers += [nn.Conv2d(inputs, width << level, 3, stride, 1), nn.ReLU()]
            inputs = width << level
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 10))


def mlp(width: int = 256) -> Any:
    """As `models.MLP`."""
    from torch import nn

    return nn.Sequential(nn.Flatten(), nn.Linear(3072, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(),
                         nn.Linear(width, 10))  # fmt: skip


def fast_cnn(width: int = 64) -> Any:
    """As `models.fast_cnn.FastCNN`, its first layer frozen too."""
    from torch import nn

    class Largest(nn.Module):
        def forward(self, x):
            return x.amax((2, 3)) / 9

    def norm(channels: int) -> Any:
        made = nn.BatchNorm2d(channels, momentum=0.4)
        made.weight.requires_grad = False
        return made

    first = nn.Conv2d(3, 24, 2)
    first.weight.requires_grad = False
    layers, inputs = [first, nn.GELU()], 24
    for channels in (width, 4 * width, 4 * width):
        layers += [nn.Conv2d(inputs, channels, 3, 1, 1, bias=False), nn.MaxPool2d(2), norm(channels), nn.GELU()]
        layers += [nn.Conv2d(channels, channels, 3, 1, 1, bias=False), norm(channels), nn.GELU()]
        inputs = channels
    return nn.Sequential(*layers, Largest(), nn.Linear(inputs, 10))


MODELS = {"resnet18_lowres": resnet18, "simple_cnn_0": simple_cnn, "fast_cnn": fast_cnn, "mlp": mlp}


def batch(batch_size: int) -> tuple[Any, Any]:
    """Random images, channels last, and labels."""
    import torch

    images = torch.randn(batch_size, 3, 32, 32).to(device(), memory_format=torch.channels_last)
    return images, (torch.arange(batch_size) % 10).to(device())


def finished(run: Work) -> Work:
    """A call that returns when the device is done."""
    import torch

    def whole() -> Any:
        result = run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return result

    return whole


def _eager_and_compiled(name: str, make: Callable[[bool], Work], compile_: bool) -> dict[str, Work]:
    """The work as it is and, where torch.compile can, compiled."""
    works = {name: finished(make(False))}
    if compile_:
        try:
            compiled = finished(make(True))
            compiled()
            works[f"{name} compiled"] = compiled
        except Exception as error:  # no C++ compiler, no Triton: many kinds
            print(f"(torch.compile does not work here: {type(error).__name__}: {str(error).splitlines()[0][:100]})")
    return works


def training_steps(
    model: str, batch_size: int, compile_: bool, half: bool = False, width: int | None = None
) -> dict[str, Work]:
    """One SGD step on one batch; half: under autocast to bfloat16; width: None for the model's own."""
    import torch

    images, labels = batch(batch_size)

    def make(compiled: bool) -> Work:
        network = MODELS[model](**({"width": width} if width else {}))
        network = network.to(device(), memory_format=torch.channels_last).train()
        called = torch.compile(network) if compiled else network
        optimizer = torch.optim.SGD(network.parameters(), 0.1, 0.9, nesterov=True, weight_decay=5e-4)

        def step() -> None:
            optimizer.zero_grad()
            with torch.autocast(device(), torch.bfloat16, enabled=half):
                loss = torch.nn.functional.cross_entropy(called(images), labels)
            loss.backward()
            optimizer.step()

        return step

    return _eager_and_compiled("PyTorch" + " bf16" * half, make, compile_)


def forward_passes(model: str, batch_size: int, compile_: bool) -> dict[str, Work]:
    """EL2N of one batch in evaluation mode, brought to the host."""
    import torch

    images, labels = batch(batch_size)
    onehot = torch.nn.functional.one_hot(labels, 10)

    def make(compiled: bool) -> Work:
        network = MODELS[model]().to(device(), memory_format=torch.channels_last).eval()
        called = torch.compile(network) if compiled else network

        def score() -> Any:
            with torch.inference_mode():
                return (torch.softmax(called(images), 1) - onehot).norm(dim=1).cpu()

        return score

    return _eager_and_compiled("PyTorch EL2N", make, compile_)


def gradient_norms(model: str, batch_size: int) -> dict[str, Work]:
    """Norms of per-example gradients by torch.func's vmap(grad), in evaluation mode."""
    import torch
    from torch.func import functional_call, grad, vmap

    network = MODELS[model]().to(device()).eval()
    params = {name: value.detach() for name, value in network.named_parameters()}
    buffers = dict(network.named_buffers())
    images, labels = batch(batch_size)

    def loss(params: Any, image: Any, label: Any) -> Any:
        logits = functional_call(network, (params, buffers), (image[None],))
        return torch.nn.functional.cross_entropy(logits, label[None])

    gradients = vmap(grad(loss), (None, 0, 0))

    def norms(chunk: tuple[Any, Any]) -> Any:
        found = gradients(params, *chunk)
        return torch.stack([value.flatten(1).square().sum(1) for value in found.values()]).sum(0).sqrt()

    chunks = list(zip(images.split(PER_EXAMPLE_CHUNK), labels.split(PER_EXAMPLE_CHUNK)))
    return {"PyTorch vmap(grad)": finished(partial(_each, norms, chunks))}


def _each(work: Callable[[Any], Any], items: list[Any]) -> list[Any]:
    return [work(item) for item in items]
