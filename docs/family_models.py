"""What the table of models measures: every name, with what builds a small model of it and its inputs."""

import sys
from collections.abc import Callable, Iterator
from functools import cache, partial
from importlib.util import find_spec
from itertools import product
from typing import Any

import torch
import written_models
from torch import Tensor, nn

from transformer_dropout.audit.tiny_models import known_types, tiny_inputs, tiny_model

Build = Callable[[], tuple[nn.Module, Any]]
SIDE = 64
# The smallest of each architecture of timm; what makes them small is tried in the order of SMALL.
TIMM = (
    *("vit_tiny_patch16_224", "vit_relpos_small_patch16_224", "flexivit_small", "deit3_small_patch16_224"),
    *("deit_tiny_distilled_patch16_224", "beit_base_patch16_224", "eva02_tiny_patch14_224", "cait_xxs24_224"),
    *(
        "xcit_nano_12_p16_224",
        "swin_tiny_patch4_window7_224",
        "swinv2_tiny_window8_256",
        "swinv2_cr_tiny_224",
    ),
    *("crossvit_tiny_240", "pit_ti_224", "coat_tiny", "coatnet_nano_rw_224", "maxvit_tiny_rw_224"),
    *("levit_128s", "mvitv2_tiny", "pvt_v2_b0", "twins_svt_small", "twins_pcpvt_small", "nest_tiny"),
    *("convit_tiny", "tnt_s_legacy_patch16_224", "volo_d1_224", "visformer_tiny", "davit_tiny"),
    *(
        "edgenext_xx_small",
        "efficientformer_l1",
        "efficientformerv2_s0",
        "efficientvit_b0",
        "efficientvit_m0",
    ),
    *("fastvit_t8", "mobilevit_xxs", "mobilevitv2_050", "gcvit_xxtiny", "hiera_tiny_224", "poolformer_s12"),
    *("caformer_s18", "convformer_s18", "sequencer2d_s", "mixer_s32_224", "resmlp_12_224", "gmlp_ti16_224"),
    *("focalnet_tiny_srf", "tiny_vit_5m_224", "vitamin_small_224", "inception_next_atto", "convnext_atto"),
    *("nextvit_small", "repvit_m0_9", "swiftformer_xs", "resnet18", "convmixer_768_32"),
    *("vit_tiny_r_s16_p8_224", "botnet26t_256", "halonet26t", "mobilenetv4_hybrid_medium", "shvit_s1"),
)
# Leaves out whole windows of its image in training: of a small one, all of them.
NOT_SMALL = ("hiera_tiny_224",)
SMALL: tuple[dict[str, Any], ...] = (
    {"img_size": SIDE, "depth": 2, "embed_dim": 32, "num_heads": 4},
    {"img_size": SIDE, "depth": 2},
    {"img_size": SIDE, "depths": (1, 1, 1, 1)},
    {"img_size": SIDE},
    {},
)


def known_models() -> dict[str, Build]:
    """Return everything that the table measures, by name, as what builds it.

    What is not installed is told of in one sentence.
    """
    known = torch_models() | written() | {name: partial(of_type, name) for name in known_types()}
    if find_spec("torchvision") is not None:
        define_kernels()
    for package, models in (("timm", timm_models), ("x_transformers", x_transformers_models)):
        if find_spec(package) is None:
            sys.stderr.write(f"{package} is not installed, so its rows are left out.\n")
        else:
            known |= models()
    return known


def of_type(name: str) -> tuple[nn.Module, Any]:
    """Build a model type of transformers."""
    model = tiny_model(name)
    return model, tiny_inputs(model)


def torch_models() -> dict[str, Build]:
    """Return torch's own layers, as what builds them."""
    x = noise(2, 6, 16)
    layer = {"d_model": 16, "nhead": 4, "dim_feedforward": 32, "batch_first": True}
    return {
        "torch.encoder": lambda: (
            nn.TransformerEncoder(nn.TransformerEncoderLayer(**layer), 2, enable_nested_tensor=False),
            (x,),
        ),
        "torch.decoder": lambda: (nn.TransformerDecoder(nn.TransformerDecoderLayer(**layer), 2), (x, x)),
        "torch.both": lambda: (
            nn.Transformer(
                16, 4, num_encoder_layers=2, num_decoder_layers=2, dim_feedforward=32, batch_first=True
            ),
            (x, x),
        ),
        "torch.perceptron": lambda: (
            nn.Sequential(nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)),
            (torch.ones(2, 784),),
        ),
    }


def written() -> dict[str, Build]:
    """Return models as people write them, as what builds them."""
    ids = torch.arange(24).view(2, 12) % written_models.WORDS
    return {
        f"written.{name}": partial(with_inputs, getattr(written_models, name), ids)
        for name in written_models.MODELS
    }


def with_inputs(model: Callable[[], nn.Module], *inputs: Tensor) -> tuple[nn.Module, Any]:
    """Build a model; its inputs are given."""
    return seeded(model), inputs


def timm_models() -> dict[str, Build]:
    """Return architectures of timm, as what builds them."""
    return {f"timm.{name}": partial(of_timm, name) for name in TIMM}


def of_timm(name: str) -> tuple[nn.Module, Any]:
    """Build a small model of timm with all drop rates that it takes."""
    import timm

    small = SMALL[-1:] if name in NOT_SMALL else SMALL
    for options, rates in product(small, ({"drop_path_rate": 0.1}, {})):
        try:
            model = seeded(partial(timm.create_model, name, num_classes=10, **options, **rates))
        except (TypeError, ValueError, AssertionError, RuntimeError, IndexError, KeyError):
            continue
        for side in (SIDE, 224, 240, 256):
            try:
                with torch.no_grad():
                    model.eval()(noise(2, 3, side, side))
            except (AssertionError, RuntimeError, ValueError):
                continue
            return model, (noise(2, 3, side, side),)
    raise ValueError("No small model could be built.")


@cache
def define_kernels() -> torch.library.Library:
    """Let a torchvision be imported whose kernels belong to another build of torch than the CPU's."""
    library = torch.library.Library("torchvision", "FRAGMENT")
    for kernel in ("nms", "qnms"):
        library.define(f"{kernel}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


def x_transformers_models() -> dict[str, Build]:
    """Return decoders and encoders of x-transformers with its options, as what builds them."""
    return dict(x_transformers_rows())


def x_transformers_rows() -> Iterator[tuple[str, Build]]:
    """Yield each model's name and what builds it."""
    rates = {"attn_dropout": 0.1, "ff_dropout": 0.1}
    options: dict[str, dict[str, Any]] = {
        "decoder": {},
        "rotary": {"rotary_pos_emb": True},
        "flash": {"attn_flash": True},
        "swiglu": {"ff_swish": True, "ff_glu": True},
        "rmsnorm": {"use_rmsnorm": True, "ff_no_bias": True},
        "shifted": {"shift_tokens": 1},
        "gated": {"gate_residual": True},
        "sandwich": {"sandwich_norm": True},
        "memory": {"attn_num_mem_kv": 4},
        "grouped": {"attn_kv_heads": 2},
        "postnorm": {"pre_norm": False},
    }
    for name, own in options.items():
        yield f"x_transformers.{name}", partial(of_x_transformers, "Decoder", {**rates, **own})
    yield "x_transformers.encoder", partial(of_x_transformers, "Encoder", rates)


def of_x_transformers(stack: str, options: dict[str, Any]) -> tuple[nn.Module, Any]:
    """Build a model of x-transformers."""
    import x_transformers

    layers = partial(getattr(x_transformers, stack), dim=32, depth=2, heads=4, attn_dim_head=8, **options)
    build = partial(x_transformers.TransformerWrapper, num_tokens=written_models.WORDS, max_seq_len=16)
    ids = torch.arange(24).view(2, 12) % written_models.WORDS
    return seeded(lambda: build(attn_layers=layers(), emb_dropout=0.1)), (ids,)


def seeded(build: Callable[[], nn.Module]) -> nn.Module:
    """Build a model with the same weights at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build()


def noise(*shape: int) -> Tensor:
    """Return random numbers, the same at every call."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))
