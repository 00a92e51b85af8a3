"""Which networks `make test-zoo` folds: all of torchvision's for classification, and timm's by what they make hard."""

from __future__ import annotations

import importlib

from training.model_source import opened

# One or two of each family whose BatchNorms stand in another place, by what they are here for.
TIMM = {
    "behind a convolution": (
        "resnet50", "regnety_002", "mobilenetv2_100", "mobilenetv3_small_100", "mobilenetv4_conv_small",
        "efficientnet_b0", "mnasnet_small", "tf_efficientnetv2_b0", "lcnet_050", "mixnet_s",
    ),
    "behind a Linear on a sequence": ("levit_128s", "levit_conv_128s", "poolformer_s12"),
    "before a convolution or a Linear": ("visformer_tiny", "xcit_nano_12_p16_224", "resnetv2_50"),
    "before an activation": ("densenet121", "dpn48b", "xception41p", "wide_resnet50_2", "xception41"),
    "around a concat": ("nasnetalarge", "pnasnet5large", "dla34", "hardcorenas_a", "selecsls42b", "ese_vovnet19b_dw",
        "cspresnet50", "cspdarknet53", "darknet53", "inception_v3", "inception_v4", "inception_resnet_v2"),
    "around sums of resolutions and gates": ("hrnet_w18_small", "resnest14d", "skresnet18", "ghostnet_100",
        "convmixer_768_32", "gcresnet50t", "seresnet50", "tresnet_m", "rexnet_100"),
    "around splits and shuffles": ("res2net50_26w_4s", "efficientformer_l1", "edgenext_xx_small", "mobilevit_xxs"),
    "in parallel branches": (
        "repvgg_a0", "mobileone_s0", "repvit_m0_9", "efficientvit_m0", "efficientvit_b0", "fastvit_t8",
        "repghostnet_050", "ghostnetv3_100", "shvit_s1", "tiny_vit_5m_224", "mobileone_s1", "hgnetv2_b0",
    ),
    "nowhere": ("convnext_atto", "vit_tiny_patch16_224"),
}  # fmt: skip


def torchvision() -> list[str]:
    """SPECs of all of torchvision's networks for classification; those for quantised kernels are another list."""
    with opened("torchvision:resnet18", torchvision_shim=True):
        models = importlib.import_module("torchvision.models")
        return [f"torchvision:{name}" for name in models.list_models(module=models)]


def timm() -> list[str]:
    """SPECs of the networks of `TIMM`."""
    return [f"timm:{name}" for names in TIMM.values() for name in names]
