"""The networks by name."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pureebm.classifiers.base import MEAN, STD, Classifier
from pureebm.classifiers.densenet import DenseNet
from pureebm.classifiers.hlb import HLBNet
from pureebm.classifiers.networks import NETWORKS, build_network, replace_head
from pureebm.classifiers.resnet import ResNet
from pureebm.errors import InputError


def basic_blocks(width: int, depths: tuple[int, ...]) -> int:
    """Convolutions and norms of a ResNet of basic blocks, counted by hand."""
    count, n_in = 27 * width + 2 * width, width
    for stage, depth in enumerate(depths):
        n_out = width * 2**stage
        for block in range(depth):
            count += 9 * n_in * n_out + 9 * n_out**2 + 4 * n_out
            count += (n_in * n_out + 2 * n_out) * (block == 0 and stage > 0)
            n_in = n_out
    return count


def hyperlight(widths: tuple[int, ...], n_convolutions: int) -> int:
    """Without biases of convolutions and head; of the norms only the biases train."""
    count, n_in = 2 * 2 * 3 * 24 + 24, 24
    for n_out in widths:
        count += 9 * n_in * n_out + 9 * n_out**2 * (n_convolutions - 1) + n_convolutions * n_out
        n_in = n_out
    return count + 10 * n_in


COUNTS = {
    "resnet18": 11_173_962,
    "resnet34": basic_blocks(64, (3, 4, 6, 3)) + 512 * 10 + 10,
    "mobilenet-v2": 2_296_922,
    "densenet121": 6_956_298,
    "hlb-tiny": hyperlight((32, 128, 128), 2),
    "hlb-small": hyperlight((64, 256, 256), 2),
    "hlb-medium": hyperlight((128, 384, 384), 2),
    "hlb-large": hyperlight((128, 512, 512), 3),
}
FEATURES = {
    "small-resnet": 128,
    "mobilenet-v2": 1280,
    "densenet121": 1024,
    "hlb-tiny": 128,
    "hlb-small": 256,
    "hlb-medium": 384,
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_has_the_published_number_of_parameters_and_features(name: str) -> None:
    network = build_network(name, 10, seed=0).eval()
    if name in COUNTS:
        assert sum(parameter.numel() for parameter in network.parameters()) == COUNTS[name]
    with torch.no_grad():
        images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
        features, maps, logits = network.features(images), network.maps(images), network(images)
    assert features.shape == (2, FEATURES.get(name, 512)) and network.head.in_features == features.shape[1]
    torch.testing.assert_close(network.head(features), logits)
    assert len(maps) >= 1 and all(one.ndim == 4 and len(one) == 2 for one in maps)
    assert logits.shape == (2, 10) and logits.std() > 0


def test_the_formula_of_basic_blocks_gives_the_published_count_of_resnet18() -> None:
    assert basic_blocks(64, (2, 2, 2, 2)) + 512 * 10 + 10 == COUNTS["resnet18"]


def test_a_resnet_for_64_pixels_reads_2048_features_from_windows_of_4() -> None:
    network = ResNet(5, size=64, width=4).eval()
    images = torch.rand(1, 3, 64, 64) * 2 - 1
    last = network.maps(images)[-1]
    assert last.shape == (1, 32, 8, 8)
    torch.testing.assert_close(network.features(images), F.avg_pool2d(last, 4).flatten(1))
    assert build_network("resnet34", 200, size=64, seed=0).head.weight.shape == (200, 2048)
    assert ResNet(5, size=16, width=4).eval().features(images[:, :, :16, :16]).shape == (1, 32)


def test_a_residual_block_is_what_the_paper_draws() -> None:
    block = ResNet(2, width=4).eval().layer2[0]
    h = torch.randn(2, 4, 8, 8)
    with torch.no_grad():
        for norm in (block.bn1, block.bn2, block.shortcut[1]):
            norm.running_mean.uniform_(-1, 1)
        main = F.relu(block.bn1(F.conv2d(h, block.conv1.weight, stride=2, padding=1)))
        main = block.bn2(F.conv2d(main, block.conv2.weight, padding=1))
        side = block.shortcut[1](F.conv2d(h, block.shortcut[0].weight, stride=2))
        torch.testing.assert_close(block(h), F.relu(main + side))


def test_names_of_tensors_are_those_of_the_published_checkpoints() -> None:
    names = set(build_network("resnet18", 10, seed=0).state_dict())
    assert {"conv1.weight", "bn1.running_var", "layer2.0.shortcut.0.weight", "layer4.1.bn2.bias"} <= names
    assert not [name for name in names if name in ("mean", "std")]
    names = set(build_network("mobilenet-v2", 10, seed=0).state_dict())
    assert {"layers.0.shortcut.1.weight", "layers.16.conv3.weight", "conv2.weight", "bn2.weight"} <= names
    names = set(DenseNet(10, growth=2, depths=(1, 1, 1, 1)).state_dict())
    assert {"dense1.0.bn1.weight", "trans3.conv.weight", "bn.weight", "conv1.weight"} <= names


@pytest.mark.parametrize(
    "network",
    [ResNet(2, width=4), HLBNet(2, widths=(24, 24, 24)), DenseNet(2, growth=2, depths=(1, 1, 1, 1))],
    ids=["resnet", "hlb", "densenet"],
)
def test_it_normalizes_by_the_mean_and_spread_of_the_0_1_range(network: Classifier) -> None:
    first = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    seen: list[Tensor] = []
    first.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    color = (torch.tensor(MEAN) + torch.tensor(STD)).view(1, 3, 1, 1)
    network.eval()((color * 2 - 1).expand(1, 3, 32, 32))
    torch.testing.assert_close(seen[0], torch.ones(1, 3, 32, 32), atol=1e-6, rtol=0)


def test_hyperlight_convolutions_begin_as_the_identity_of_their_first_channels() -> None:
    network = HLBNet(10, widths=(32, 32, 48))
    h = torch.rand(1, 32, 7, 7)
    for group, n_in in zip(network.groups, (24, 32, 32), strict=True):
        torch.testing.assert_close(group.conv1(h[:, :n_in])[:, :n_in], h[:, :n_in])
    assert not network.stem.weight[:3].equal(torch.zeros(3, 3, 2, 2))


def test_a_heavy_hyperlight_group_adds_what_its_first_convolution_made() -> None:
    group = HLBNet(10, widths=(24, 24, 24), heavy=True).eval().groups[0]
    h = torch.randn(1, 24, 8, 8)
    first, second, last = group(h)
    torch.testing.assert_close(first, F.gelu(group.norm1(F.max_pool2d(group.conv1(h), 2))))
    torch.testing.assert_close(last, first + F.gelu(group.norm3(group.conv3(second))))


def test_hyperlight_norms_keep_scale_1_and_the_published_share_of_their_statistics() -> None:
    network = build_network("hlb-small", 10, seed=0)
    norms = {name: module for name, module in network.named_modules() if isinstance(module, nn.BatchNorm2d)}
    kept = {name: round(1 - norm.momentum, 6) for name, norm in norms.items()}
    assert kept == {"norm": 0.7} | {f"groups.{i}.norm{j}": {1: 0.7, 2: 0.6}[j] for i in range(3) for j in (1, 2)}
    assert all(norm.eps == 1e-12 and [n for n, _ in norm.named_parameters()] == ["bias"] for norm in norms.values())
    assert network.head.bias is None
    with torch.no_grad():
        images = torch.rand(1, 3, 32, 32)
        last = network.eval().maps(images)[-1]
        torch.testing.assert_close(network(images), F.max_pool2d(last, 3).flatten(1) @ network.head.weight.T / 9)


def test_weights_are_a_function_of_the_seed_and_the_global_random_state_stays() -> None:
    state = torch.random.get_rng_state()
    first, again, other = (build_network("small-resnet", 4, seed=seed) for seed in (1, 1, 2))
    replace_head(first, 7, seed=3)
    replace_head(again, 7, seed=3)
    assert torch.random.get_rng_state().equal(state)
    assert first.head.weight.shape[0] == 7
    assert all(a.equal(b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not next(other.parameters()).equal(next(first.parameters()))


def test_an_unknown_name_is_told_the_known_ones() -> None:
    with pytest.raises(InputError, match="unknown network 'resnet-18'; did you mean 'resnet18'.*hlb-large, and timm:"):
        build_network("resnet-18", 10, seed=0)


def test_timm_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InputError, match=r"pip install pureebm\[timm\]"):
        build_network("timm:resnet18", 10, seed=0)


class Tokens(nn.Module):
    """What timm makes of a small vision transformer: tokens, and their mean as pooled features."""

    num_features = 6

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 6, 8, stride=8)

    def forward_features(self, x: Tensor) -> Tensor:
        return self.patches(x).flatten(2).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_features(x).mean(dim=1)


def test_a_network_of_timm_gets_a_linear_head_and_its_tokens_are_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, object]] = []

    def create(name: str, **options: object) -> nn.Module:
        if "img_size" in options:
            raise TypeError("no img_size")
        asked.append({"name": name, **options})
        return Tokens()

    fake = SimpleNamespace(is_model=lambda name: name == "tiny", list_models=lambda text: ["tiny"], create_model=create)
    monkeypatch.setitem(sys.modules, "timm", fake)
    network, again = (build_network("timm:tiny", 4, seed=1).eval() for _ in range(2))
    images = torch.rand(2, 3, 32, 32)
    assert asked[0] == {"name": "tiny", "pretrained": False, "num_classes": 0}
    assert network(images).shape == (2, 4) and network.maps(images)[-1].shape == (2, 6, 16, 1)
    torch.testing.assert_close(network.features(images), Classifier.features(network, images))
    assert network(images).equal(again(images))
    with pytest.raises(InputError, match="timm has no network 'tin'; similar: tiny"):
        build_network("timm:tin", 4, seed=0)
